"""SwiGLU (2002.05202): the gated feed-forward of Llama and most models after it, as a channel mixer.

y = W_down (silu(W_gate x) * (W_up x))
"""

from typing import ClassVar, Self

import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig
from effarch.nn.feed_forward import GatedMLP
from effarch.registry import register
from effarch.typing import Array


@register("swiglu", kind="channel")
class SwiGLU(MixerConfig):
    """The gated feed-forward layer; no state."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    stands_in_for_attention: ClassVar[bool] = False
    paper: ClassVar[str] = "2002.05202 GLU Variants Improve Transformer"

    hidden: int = pydantic.Field(2048, gt=0, description="width of the hidden layer")
    bias: bool = pydantic.Field(False, description="biases on the three projections")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "SwiGLUMixer":
        return SwiGLUMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 6 * time * dim * self.hidden

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(hidden=48), 32


class SwiGLUMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: SwiGLU, dim: int, *, rngs: nnx.Rngs) -> None:
        self.mlp = GatedMLP(dim, config.hidden, bias=config.bias, rngs=rngs)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        return self.mlp(x), state, ctx
