"""Lightning attention (2401.04658), as MiniMax-01 (2501.08313) has it: linear attention with one fixed decay per head.

    S_t = l S_{t-1} + k_t v_t^T        o_t = S_t^T q_t        q, k, v = silu(W_q x), silu(W_k x), silu(W_v x)
    log l = -2^(-8 (h + 1) / H) (1 - i / (L - 1 + 1e-5) + 1e-5)        head h from 0, layer i of L
    y_t = W_o (RMSNorm(o_t) * sigmoid(W_g x_t)), the norm over all heads together

Later layers remember longer. q is not scaled. TransNormer, the paper's model, has other slopes (8 h / H (1 - i / L));
MiniMax-01 packs q, k and v of a head into one kernel, and adds what the mixer returns to alpha times the *normalised*
input, which is the block's part. A student may keep its teacher's rotary positions (``rope_theta``).
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx

from effarch.mixers.base import BiasedConfig, Context, LayerInfo, Mixer, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.recurrence import Constant, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("lightning", kind="mixer")
class Lightning(BiasedConfig):
    """Linear attention with a fixed decay per head that weakens with depth."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "constant"
    paper: ClassVar[str] = "2401.04658 Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths"

    num_heads: int = pydantic.Field(64, gt=0, description="heads")
    head_dim: int = pydantic.Field(128, gt=0, description="width of a head: queries, keys and values")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "LightningMixer":
        return LightningMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        heads, width = self.num_heads, self.head_dim
        return time * 10 * dim * heads * width + recurrence_flops(
            "decay", time, heads=heads, key_heads=heads, key_dim=width, value_dim=width
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, rope_theta=1e4), 32


class LightningMixer(Mixer):
    """The module; see the file. Its state is S, [B, H, K, V] float32."""

    def __init__(self, config: Lightning, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, width = config.num_heads, config.head_dim
        self.qkv = QKV(dim, heads=heads, kv_heads=heads, key_dim=width, value_dim=width, **config.biases, rngs=rngs)
        self.gate = Linear(dim, (heads, width), axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.norm = RMSNorm(heads * width, eps=config.norm_eps, axes=(None,))
        slope = jnp.asarray(2.0 ** (-8.0 * np.arange(1, heads + 1) / heads), jnp.float32)
        last = layer.count - 1
        above = jnp.asarray(last - layer.index, jnp.float32)  # layers; an integer, so that nothing cancels
        self.log_decay = nnx.Variable(-slope * ((above + 1e-5) / (last + 1e-5) + 1e-5), axes=("heads",))  # fixed

    def init_state(self, batch_size: int, max_length: int) -> Array:
        c = self.config
        return jnp.zeros((batch_size, c.num_heads, c.head_dim, c.head_dim), jnp.float32)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        c = self.config
        q, k, v = (jax.nn.silu(y) for y in self.qkv(x))
        if c.rope_theta is not None:
            q, k = rotate(q, ctx.positions, c.rope_theta), rotate(k, ctx.positions, c.rope_theta)
        transition = Constant(self.log_decay[...])
        o, after = linear_recurrence(
            q, k, v, transition=transition, state=state, segment_ids=ctx.segments, form=ctx.form
        )
        o = self.norm(o.reshape(*x.shape[:2], -1)).reshape(o.shape)
        y = self.qkv.o(o * jax.nn.sigmoid(self.gate(x)))
        return y, None if state is None else after, ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher, its key heads repeated; the gate and the norm are new. Returns self."""
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o)
        return self
