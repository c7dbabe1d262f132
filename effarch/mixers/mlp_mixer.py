"""The token-mixing MLP of MLP-Mixer (2105.01601).

    y_td = b_2t + sum_f W_2tf gelu(b_1f + sum_s W_1fs x_sd)

One MLP along time, the same for every channel d: T is fixed by its weights, and every token sees all others. The other
half of a layer is the channel mixer ``gelu_mlp``; each stands behind a LayerNorm. As the authors' code, gelu is in its
tanh form. There are no positions, documents or padding, and nothing that attention's weights could stand for.
"""

from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, rows_of_length
from effarch.nn.mlp import MLP
from effarch.registry import register
from effarch.typing import Array


@register("mlp_mixer", kind="mixer")
class MLPMixer(MixerConfig):
    """An MLP over the tokens of rows of one length. Defaults are those of Mixer-B/16."""

    causal: ClassVar[bool] = False
    fixed_length: ClassVar[bool] = True
    packed: ClassVar[bool] = False
    stands_in_for_attention: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel",)
    paper: ClassVar[str] = "2105.01601 MLP-Mixer: An all-MLP Architecture for Vision"

    length: int = pydantic.Field(196, gt=0, description="tokens of a row; 14 x 14 patches")
    hidden: int = pydantic.Field(384, gt=0, description="width of the hidden layer; half of the model's")
    approximate: bool = pydantic.Field(True, description="gelu in its tanh form; false: with erf")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "TokenMLPMixer":
        return TokenMLPMixer(self, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 4 * time * dim * self.hidden

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(length=24, hidden=16), 32


class TokenMLPMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: MLPMixer, *, rngs: nnx.Rngs) -> None:
        self.length = config.length
        self.mlp = MLP(config.length, config.hidden, axis=None, approximate=config.approximate, rngs=rngs)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        rows_of_length("mlp_mixer", self.length, x, ctx)
        return jnp.swapaxes(self.mlp(jnp.swapaxes(x, 1, 2)), 1, 2), state, ctx
