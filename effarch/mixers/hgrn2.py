"""HGRN2 (2404.07904): gated linear RNNs with state expansion. The key is what the forget gate lets go.

    S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T        o_t = S_t^T q_t
    f_t = b + (1 - b) sigmoid(W_f x_t)        q_t = silu(W_q x_t) K^-1/2        y_t = W_o RMSNorm(o_t)

The bound b, one per channel, rises with depth (``effarch.nn.lower_bound``); its parameter stands in the first layer
with this mixer, and the bounds cross layers in the context as ``hgrn2_bounds``. The norm is over all heads together;
there is no gate.
"""

from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.lower_bound import LowerBound, bounded_forget
from effarch.nn.norm import RMSNorm
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Diagonal, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("hgrn2", kind="mixer")
class HGRN2(MixerConfig):
    """Linear attention whose keys are one minus its decays."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "2404.07904 HGRN2: Gated Linear RNNs with State Expansion"

    num_heads: int = pydantic.Field(16, gt=0, description="heads")
    head_dim: int = pydantic.Field(128, gt=0, description="forget gates (and so state rows) of a head")
    value_head_dim: int = pydantic.Field(128, gt=0, description="width of a value head")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "HGRN2Mixer":
        return HGRN2Mixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        projections = 4 * dim * self.num_heads * (self.head_dim + self.value_head_dim)
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
        return cls(num_heads=4, head_dim=8, value_head_dim=8), 32


class HGRN2Mixer(Mixer):
    """The module; see the file. Its state is S, [B, H, K, V] float32."""

    def __init__(self, config: HGRN2, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, key_dim, value_dim = config.num_heads, config.head_dim, config.value_head_dim
        per_head = ("heads", "head_dim")
        project = partial(Linear, dim, axes=("embed", *per_head), rngs=rngs)
        self.q, self.f, self.v = project((heads, key_dim)), project((heads, key_dim)), project((heads, value_dim))
        self.bound = LowerBound(
            (heads, key_dim), axes=per_head, index=layer.index, count=layer.count, first=layer.first
        )
        self.norm = RMSNorm(heads * value_dim, eps=config.norm_eps, axes=(None,))
        self.o = Linear((heads, value_dim), dim, axes=(*per_head, "embed"), rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> Array:
        c = self.config
        return jnp.zeros((batch_size, c.num_heads, c.head_dim, c.value_head_dim), jnp.float32)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        bound, bounds = self.bound(ctx.shared.get("hgrn2_bounds"))
        log_decay, k = bounded_forget(self.f(x).astype(accumulator(x)), bound)
        q = jax.nn.silu(self.q(x)) * jnp.asarray(self.config.head_dim**-0.5, x.dtype)
        transition = Diagonal(log_decay)
        o, after = linear_recurrence(
            q,
            k.astype(x.dtype),
            self.v(x),
            transition=transition,
            state=state,
            segment_ids=ctx.segments,
            form=ctx.form,
        )
        y = self.o(self.norm(o.reshape(*x.shape[:2], -1)).reshape(o.shape))
        return y, None if state is None else after, ctx.share(hgrn2_bounds=bounds)

    def from_attention(self, attention: Attention) -> Self:
        """q, v and o of the teacher, its value heads repeated; it has nothing for the forget gate. Returns self."""
        copy_projections(attention, q=self.q, v=self.v, o=self.o)
        return self
