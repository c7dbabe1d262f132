"""The cross-patch layer of ResMLP (2105.03404): linear along time.

    y_td = s_d (b_t + sum_s W_ts x_sd)

The same W for every channel: T is fixed by it. s is a learned factor per channel that starts small (``layer_scale``).
The paper puts an affine map in place of each norm, which is the model's ``norm: affine``; the other half of a layer is
``gelu_mlp`` with ``layer_scale`` and ``approximate: false``. As the authors' code, s has no bias, and there is b. No
positions, documents or padding, and nothing that attention's weights could stand for.
"""

from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, rows_of_length
from effarch.nn.linear import Linear
from effarch.ops.channels import over_tokens
from effarch.registry import register
from effarch.typing import Array


@register("resmlp", kind="mixer")
class ResMLP(MixerConfig):
    """A matrix over the tokens of rows of one length. Defaults are those of ResMLP-S12."""

    causal: ClassVar[bool] = False
    fixed_length: ClassVar[bool] = True
    packed: ClassVar[bool] = False
    stands_in_for_attention: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel",)
    paper: ClassVar[str] = "2105.03404 ResMLP: Feedforward networks for image classification with data-efficient training"

    length: int = pydantic.Field(196, gt=0, description="tokens of a row; 14 x 14 patches")
    layer_scale: float = pydantic.Field(
        0.1, gt=0, description="initial factor of the output; 1e-5 with 24 layers, 1e-6 with 36"
    )

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "ResMLPMixer":
        return ResMLPMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 2 * time * time * dim

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(length=24), 32


class ResMLPMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: ResMLP, dim: int, *, rngs: nnx.Rngs) -> None:
        self.length = config.length
        self.patches = Linear(config.length, config.length, axes=(None, None), bias=True, rngs=rngs)
        self.scale = nnx.Param(jnp.full((dim,), config.layer_scale, jnp.float32), axes=("embed",))

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        rows_of_length("resmlp", self.length, x, ctx)
        y = jnp.swapaxes(self.patches(jnp.swapaxes(x, 1, 2)), 1, 2)
        return y * over_tokens(self.scale[...], y), state, ctx
