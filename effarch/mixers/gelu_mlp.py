"""The feed-forward layer of Transformers (1706.03762), with gelu (1606.08415) and biases, as a channel mixer.

    y = s * (W_2 gelu(W_1 x + b_1) + b_2)

What BERT, ViT, MLP-Mixer and FNet have; with ``layer_scale``, one learned factor s per channel that starts small, what
ResMLP (2105.03404) and CaiT (2103.17239) have.
"""

from typing import ClassVar, Literal, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig
from effarch.nn.mlp import MLP
from effarch.ops.channels import over_tokens
from effarch.registry import register
from effarch.typing import Array


@register("gelu_mlp", kind="channel")
class GeluMLP(MixerConfig):
    """Two layers with gelu between them; no state."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    stands_in_for_attention: ClassVar[bool] = False
    paper: ClassVar[str] = "1706.03762 Attention Is All You Need"

    hidden: int = pydantic.Field(3072, gt=0, description="width of the hidden layer; 4 times the model's")
    approximate: bool = pydantic.Field(True, description="gelu in its tanh form; false: with erf")
    activation: Literal["gelu", "relu"] = pydantic.Field("gelu", description="between the two layers")
    layer_scale: float | None = pydantic.Field(None, gt=0, description="initial factor of the output; null: none")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GeluMLPMixer":
        return GeluMLPMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return 4 * time * dim * self.hidden

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(hidden=64, layer_scale=0.1), 32


class GeluMLPMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: GeluMLP, dim: int, *, rngs: nnx.Rngs) -> None:
        self.mlp = MLP(dim, config.hidden, approximate=config.approximate, activation=config.activation, rngs=rngs)
        small = config.layer_scale
        self.scale = None if small is None else nnx.Param(jnp.full((dim,), small, jnp.float32), axes=("embed",))

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        y = self.mlp(x)
        return y if self.scale is None else y * over_tokens(self.scale[...], y), state, ctx
