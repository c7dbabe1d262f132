"""Gated slot attention: GSA (2409.07146). A memory of M slots, each a key and a value, with a decay of its own.

    S1_t = S1_{t-1} Diag(f_t) + k_t (1 - f_t)^T        p_t = softmax(S1_t^T q_t)        S1: [B, H, K, M], keys
    S2_t = Diag(f_t) S2_{t-1} + (1 - f_t) v_t^T        o_t = S2_t^T p_t                 S2: [B, H, M, V], values
    log f_t = logsigmoid(W_f x_t) / 8        q, k, v = silu(W_q x), silu(W_k x), silu(W_v x)
    y_t = W_o RMSNorm(silu(o_t)), the norm over all heads together

Two passes of one recurrence: in the first every slot is a head whose value has one channel (q and k are shared, not
repeated), in the second slots are the channels of the keys. q is not scaled, as in the authors' layer, although their
operation divides by sqrt(K) unless told otherwise.
"""

from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import BiasedConfig, Context, LayerInfo, Mixer, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm
from effarch.nn.qkv import QKV
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Diagonal, Scalar, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("gsa", kind="mixer")
class GSA(BiasedConfig):
    """Softmax attention to slots that are written and forgotten by gates."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "2409.07146 Gated Slot Attention for Efficient Linear-Time Sequence Modeling"

    num_heads: int = pydantic.Field(4, gt=0, description="heads")
    head_dim: int = pydantic.Field(512, gt=0, description="width of a query or key head")
    value_head_dim: int = pydantic.Field(512, gt=0, description="width of a value head")
    num_slots: int = pydantic.Field(64, gt=0, description="slots M of a head")
    temperature: float = pydantic.Field(8.0, gt=0, description="divides the log-decay: the larger, the longer memory")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GSAMixer":
        return GSAMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        heads, slots = self.num_heads, self.num_slots
        projections = 2 * dim * heads * (2 * self.head_dim + 2 * self.value_head_dim + slots)
        count = partial(recurrence_flops, "decay", time, key_heads=heads)
        keys = count(heads=heads * slots, key_dim=self.head_dim, value_dim=1)
        return time * projections + keys + count(heads=heads, key_dim=slots, value_dim=self.value_head_dim)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=2, head_dim=8, value_head_dim=16, num_slots=4), 32


class GSAMixer(Mixer):
    """The module; see the file. Its state, float32: keys [B, H M, K, 1] and values [B, H, M, V] of the slots."""

    def __init__(self, config: GSA, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, key_dim, value_dim = config.num_heads, config.head_dim, config.value_head_dim
        self.qkv = QKV(
            dim, heads=heads, kv_heads=heads, key_dim=key_dim, value_dim=value_dim, **config.biases, rngs=rngs
        )
        self.f = Linear(dim, (heads, config.num_slots), axes=("embed", "heads", None), rngs=rngs)
        self.norm = RMSNorm(heads * value_dim, eps=config.norm_eps, axes=(None,))

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        c = self.config
        keys = jnp.zeros((batch_size, c.num_heads * c.num_slots, c.head_dim, 1), jnp.float32)
        return keys, jnp.zeros((batch_size, c.num_heads, c.num_slots, c.value_head_dim), jnp.float32)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        keys, values = (None, None) if state is None else state
        run = partial(linear_recurrence, segment_ids=ctx.segments, form=ctx.form)
        q, k, v = (jax.nn.silu(y) for y in self.qkv(x))
        log_f = jax.nn.log_sigmoid(self.f(x).astype(accumulator(x))) / self.config.temperature
        write = (-jnp.expm1(log_f)).astype(x.dtype)
        slots = (*x.shape[:2], -1)  # of all heads
        transition = Scalar(log_f.reshape(slots))
        scores, keys = run(q, k, write.reshape(slots)[..., None], transition=transition, state=keys)
        p = jax.nn.softmax(scores.reshape(log_f.shape).astype(log_f.dtype), axis=-1).astype(x.dtype)
        o, values = run(p, write, v, transition=Diagonal(log_f), state=values)
        o = self.norm(jax.nn.silu(o).reshape(slots)).reshape(o.shape)
        return self.qkv.o(o), None if state is None else (keys, values), ctx

    def from_attention(self, attention: Attention) -> Self:
        """Q (with the K^-1/2 of its scores), k, v and o of the teacher, its key heads repeated; the rest is new.

        Returns self.
        """
        scale = self.config.head_dim**-0.5
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o, scale=scale)
        return self
