"""Gated linear attention: GLA (2312.06635).

    S_t = Diag(a_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        log a_t = logsigmoid(W_2 W_1 x_t + c) / 16
    y_t = W_o (RMSNorm_head(o_t) * silu(W_g x_t))

a_t has one decay per key channel, through a map of rank 16; q is scaled by K^-1/2. One learned norm weight per value
channel, shared by the heads, as in flash-linear-attention. A student may keep its teacher's rotary positions
(``rope_theta``).
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import BiasedConfig, Context, LayerInfo, Mixer, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.low_rank import LowRank
from effarch.nn.norm import RMSNorm
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Diagonal, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("gla", kind="mixer")
class GLA(BiasedConfig):
    """Linear attention with a decay per key channel and token. The paper's K is half of V."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "2312.06635 Gated Linear Attention Transformers with Hardware-Efficient Training"

    num_heads: int = pydantic.Field(4, gt=0, description="heads")
    head_dim: int = pydantic.Field(256, gt=0, description="width of a query or key head")
    value_head_dim: int = pydantic.Field(512, gt=0, description="width of a value head")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")
    gate_rank: int = pydantic.Field(16, gt=0, description="rank of the map from x to the decays")
    temperature: float = pydantic.Field(16.0, gt=0, description="divides the log-decay: the larger, the longer memory")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm per head")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GLAMixer":
        return GLAMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        keys, values = self.num_heads * self.head_dim, self.num_heads * self.value_head_dim
        projections = 2 * dim * (2 * keys + 3 * values) + 2 * self.gate_rank * (dim + keys)
        return time * projections + recurrence_flops(
            "decay",
            time,
            heads=self.num_heads,
            key_heads=self.num_heads,
            key_dim=self.head_dim,
            value_dim=self.value_head_dim,
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, value_head_dim=8, rope_theta=1e4, gate_rank=4), 32


class GLAMixer(Mixer):
    """The module; see the file. Its state is S, [B, H, K, V] float32."""

    def __init__(self, config: GLA, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, key_dim, value_dim = config.num_heads, config.head_dim, config.value_head_dim
        per_head = ("heads", "head_dim")
        self.qkv = QKV(
            dim, heads=heads, kv_heads=heads, key_dim=key_dim, value_dim=value_dim, **config.biases, rngs=rngs
        )
        bias = jnp.zeros((heads, key_dim), jnp.float32)
        self.a = LowRank(dim, config.gate_rank, (heads, key_dim), axes=per_head, bias=bias, rngs=rngs)
        self.gate = Linear(dim, (heads, value_dim), axes=("embed", *per_head), rngs=rngs)
        self.norm = RMSNorm(value_dim, eps=config.norm_eps, axes=(None,))

    def init_state(self, batch_size: int, max_length: int) -> Array:
        c = self.config
        return jnp.zeros((batch_size, c.num_heads, c.head_dim, c.value_head_dim), jnp.float32)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        c = self.config
        q, k, v = self.qkv(x)
        if c.rope_theta is not None:
            q, k = rotate(q, ctx.positions, c.rope_theta), rotate(k, ctx.positions, c.rope_theta)
        q = q * jnp.asarray(c.head_dim**-0.5, q.dtype)
        log_decay = jax.nn.log_sigmoid(self.a(x).astype(accumulator(x))) / c.temperature
        o, after = linear_recurrence(
            q, k, v, transition=Diagonal(log_decay), state=state, segment_ids=ctx.segments, form=ctx.form
        )
        y = self.qkv.o(self.norm(o) * jax.nn.silu(self.gate(x)))
        return y, None if state is None else after, ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher (K = V), its key heads repeated; decays, gate and norm are new. Returns self."""
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o)
        return self
