"""gMLP (2105.08050): channels and tokens mixed in one unit by a spatial gate.

    [z^1, z^2]_t = gelu(W_in x_t + c)        g_t = b_t + sum_s W_ts LayerNorm(z^2_s)        y_t = W_out (z^1_t * g_t) + e

The paper's block is this unit alone behind one LayerNorm, so a layer has it as its mixer and ``channel: null``. T is
fixed by W, which every channel shares; W starts near 0 and b at 1, so that the unit begins as a feed-forward layer on
each token. The paper's variant with a small attention head beside the gate (aMLP) is not here. No positions, documents
or padding, and nothing that attention's weights could stand for.
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, rows_of_length
from effarch.nn.linear import Linear
from effarch.nn.norm import LayerNorm
from effarch.registry import register
from effarch.typing import Array


@register("gmlp", kind="mixer")
class GMLP(MixerConfig):
    """Two projections with a gate over the tokens of rows of one length between them. Defaults are gMLP-S's."""

    causal: ClassVar[bool] = False
    fixed_length: ClassVar[bool] = True
    packed: ClassVar[bool] = False
    stands_in_for_attention: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel",)
    paper: ClassVar[str] = "2105.08050 Pay Attention to MLPs"

    length: int = pydantic.Field(196, gt=0, description="tokens of a row; 14 x 14 patches")
    hidden: int = pydantic.Field(1536, gt=0, multiple_of=2, description="width of z, both halves; 6 times the model's")
    spatial_scale: float = pydantic.Field(1e-6, ge=0, description="initial variance of W times T")
    approximate: bool = pydantic.Field(False, description="gelu in its tanh form; false: with erf")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GMLPMixer":
        return GMLPMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return time * self.hidden * (3 * dim + time)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(length=24, hidden=32), 32


class GMLPMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: GMLP, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        half = config.hidden // 2
        self.into = Linear(dim, (2, half), axes=("embed", None, "mlp"), bias=True, rngs=rngs)
        self.norm = LayerNorm(half, axes=("mlp",))
        self.tokens = Linear(
            config.length, config.length, axes=(None, None), bias=True, scale=config.spatial_scale, rngs=rngs
        )
        self.tokens.bias = nnx.Param(jnp.ones((config.length,), jnp.float32), axes=(None,))
        self.out = Linear(half, dim, axes=("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        rows_of_length("gmlp", self.config.length, x, ctx)
        z = jax.nn.gelu(self.into(x), approximate=self.config.approximate)
        gate = self.tokens(jnp.swapaxes(self.norm(z[:, :, 1]), 1, 2))
        return self.out(z[:, :, 0] * jnp.swapaxes(gate, 1, 2)), state, ctx
