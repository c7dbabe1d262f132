"""minGRU, a gated recurrent unit whose gates do not read the state (2410.01201).

    h_t = (1 - z_t) * h_{t-1} + z_t * c_t        z_t = sigmoid(W_z x_t)        c_t = g(W_c x_t)        y_t = W_o h_t
    g(u) = u + 1/2 for u >= 0, else sigmoid(u); or g(u) = u (``positive``: false, the paper's first form)

The paper scans logarithms, which is why its candidates are positive; we scan the values, with natural-log decays
log(1 - z) = logsigmoid(-W_z x), so both forms are stable. h_0 = 0. The output projection is always there (the paper has
it where the recurrence is wider than the model); the convolution that stands in front of it in some of the paper's
models is not.
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
from effarch.ops.precision import accumulator
from effarch.ops.scan import linear_scan
from effarch.registry import register
from effarch.typing import Array, Float, PyTree


def positive(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """``u + 1/2`` for u >= 0, else ``sigmoid(u)``: continuous, its slope jumps from 1/4 to 1 at 0."""
    return jnp.where(u >= 0, u + 0.5, jax.nn.sigmoid(u))


@register("mingru", kind="mixer")
class MinGRU(MixerConfig):
    """A running average per channel whose speed is a gate."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("chunkwise", "recurrent")
    transition: ClassVar[str] = "elementwise"
    paper: ClassVar[str] = "2410.01201 Were RNNs All We Needed?"

    channels: int | None = pydantic.Field(None, gt=0, description="width of the recurrence; null: the model's")
    positive: bool = pydantic.Field(True, description="candidates g(W x) > 0, as the log-space form has them")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "MinGRUMixer":
        return MinGRUMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 2 * time * (self.channels or dim) * (3 * dim + 1)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(channels=24), 16


class MinGRUMixer(Mixer):
    """The module; see the file. Its state is h [B, channels] float32."""

    def __init__(self, config: MinGRU, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.channels = config.channels or dim
        project = partial(Linear, dim, self.channels, axes=("embed", "mlp"), rngs=rngs)
        self.z, self.c = project(), project()
        self.o = Linear(self.channels, dim, axes=("mlp", "embed"), rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> Array:
        return jnp.zeros((batch_size, self.channels), jnp.float32)

    def __call__(self, x: Array, state: Array | None, ctx: Context) -> tuple[Array, Array | None, Context]:
        wide = accumulator(x)
        h = jnp.zeros((len(x), self.channels), wide) if state is None else state

        def gates(tokens: tuple[Array, Array], _: PyTree) -> tuple[Array, Array]:
            z, c = (y.astype(wide) for y in tokens)
            return jax.nn.log_sigmoid(-z), jax.nn.sigmoid(z) * (positive(c) if self.config.positive else c)

        y, h = linear_scan((self.z(x), self.c(x)), state=h, gates=gates, segment_ids=ctx.segments)
        return self.o(y.astype(x.dtype)), None if state is None else h, ctx

    def from_attention(self, attention: Attention) -> Self:
        """The candidates take the teacher's values (of which g makes positive ones), the output its output.

        Returns self.
        """
        copy_projections(attention, v=self.c, o=self.o)
        return self
