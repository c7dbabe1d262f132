"""GeGLU (2002.05202): the gated feed-forward of Gemma and Griffin (2402.19427), as a channel mixer.

y = W_down (gelu(W_gate x) * (W_up x))
"""

from functools import partial
from typing import ClassVar, Self

import jax
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig
from effarch.nn.feed_forward import GatedMLP
from effarch.registry import register
from effarch.typing import Array


@register("geglu", kind="channel")
class GeGLU(MixerConfig):
    """The feed-forward layer gated by a gelu; no state."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    stands_in_for_attention: ClassVar[bool] = False
    paper: ClassVar[str] = "2002.05202 GLU Variants Improve Transformer"

    hidden: int = pydantic.Field(2048, gt=0, description="width of the hidden layer; 3 times the model's in Griffin")
    approximate: bool = pydantic.Field(True, description="gelu in its tanh form; false: with erf")
    bias: bool = pydantic.Field(False, description="biases on the three projections (Griffin)")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GeGLUMixer":
        return GeGLUMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 6 * time * dim * self.hidden

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(hidden=48, bias=True), 32


class GeGLUMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: GeGLU, dim: int, *, rngs: nnx.Rngs) -> None:
        self.approximate = config.approximate
        self.mlp = GatedMLP(dim, config.hidden, bias=config.bias, rngs=rngs)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        return self.mlp(x, partial(jax.nn.gelu, approximate=self.approximate)), state, ctx
