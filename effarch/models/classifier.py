"""The classifier of images and sequences: an embedding, the decoder's stack of blocks, pooling, a head.

Its mixers may see both directions. One row is one image or one document.
"""

import dataclasses
from typing import Annotated, Any, Literal, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch import axes
from effarch.config import Config
from effarch.mixers.base import Context, LayerInfo
from effarch.models.block import Block, BlockConfig, NormKind, make_norm
from effarch.models.lm import DType, Pattern, with_params_in
from effarch.models.stack import make_stack, scan_layers
from effarch.nn.embedding import Embedding
from effarch.nn.linear import Linear
from effarch.nn.patches import PatchEmbedding
from effarch.ops.precision import accumulator
from effarch.registry import Choice, register
from effarch.typing import Array, Bool, Float


class InputConfig(Config):
    """Base of what a classifier reads, chosen by ``type``."""

    @property
    def tokens(self) -> int:
        """Tokens of a row, at most."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens")

    def make(self, dim: int, rngs: nnx.Rngs) -> Any:
        """The module ``(inputs, dtype) -> [B, T, D]``."""
        raise NotImplementedError(f"{type(self).__name__} has no make")


@register("patches", kind="input")
class Patches(InputConfig):
    """Images ``[B, height, width, channels]``, a token per patch. With ``patch: 1`` the sequence of an image's pixels."""

    height: int = pydantic.Field(224, gt=0, description="of an image, pixels")
    width: int = pydantic.Field(224, gt=0, description="of an image, pixels")
    channels: int = pydantic.Field(3, gt=0, description="of a pixel")
    patch: int = pydantic.Field(16, gt=0, description="side of a patch, pixels; divides height and width")

    @pydantic.model_validator(mode="after")
    def _tiled(self) -> Self:
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"patch: expected a divisor of {self.height} and {self.width}, got {self.patch}")
        return self

    @property
    def tokens(self) -> int:
        """One per patch."""
        return (self.height // self.patch) * (self.width // self.patch)

    def make(self, dim: int, rngs: nnx.Rngs) -> PatchEmbedding:
        return PatchEmbedding(self.patch, self.channels, dim, rngs=rngs)


@register("ids", kind="input")
class Ids(InputConfig):
    """Token ids ``[B, T]``."""

    vocab_size: int = pydantic.Field(258, gt=0, description="rows of the embedding; 258 for bytes")
    length: int = pydantic.Field(1024, gt=0, description="tokens of the longest row")

    @property
    def tokens(self) -> int:
        """The longest row's."""
        return self.length

    def make(self, dim: int, rngs: nnx.Rngs) -> Embedding:
        return Embedding(self.vocab_size, dim, rngs=rngs)


class ClassifierConfig(Config):
    """A classifier."""

    input: Annotated[InputConfig, Choice("input")] = Patches()
    classes: int = pydantic.Field(10, gt=1, description="classes")
    dim: int = pydantic.Field(512, gt=0, description="width D of the residual stream")
    num_layers: int = pydantic.Field(8, gt=0, description="layers")
    pattern: Pattern = pydantic.Field(
        (BlockConfig(mixer="mlp_mixer", channel="gelu_mlp"),), description="layers repeat this list of blocks"
    )
    norm: NormKind = pydantic.Field("layer", description='kind of the norms; "affine" only scales and shifts (ResMLP)')
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norms")
    positions: Literal["none", "learned"] = pydantic.Field(
        "none", description='"learned" adds an embedding of each position; mixers of one length need none'
    )
    pool: Literal["mean", "class_token"] = pydantic.Field(
        "mean", description="what the head reads: the mean of all tokens, or a learned token after the last"
    )
    dtype: DType = pydantic.Field("float32", description="of activations and matrix products")
    param_dtype: DType = pydantic.Field("float32", description="of parameters")
    remat: Literal["none", "full", "dots"] = pydantic.Field("none", description="what the backward pass recomputes")
    scan_layers: bool = pydantic.Field(True, description="scan repeated layers; false unrolls them")

    @property
    def length(self) -> int:
        """Tokens that mixers see, at most: the input's, and the class token."""
        return self.input.tokens + (self.pool == "class_token")

    @pydantic.model_validator(mode="after")
    def _lengths(self) -> Self:
        for block in self.pattern:
            if block.mixer.fixed_length and block.mixer.length != self.length:
                raise ValueError(
                    f"pattern: expected length {self.length} (tokens of a row) in {block.mixer.type_name}, "
                    f"got {block.mixer.length}"
                )
        return self


class Classifier(nnx.Module):
    """A classifier; the head starts at zero, so that every class is as likely at first."""

    def __init__(self, config: ClassifierConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        dim = config.dim
        self.embedding = config.input.make(dim, rngs)
        small = 0.02 * jax.random.normal(rngs.params(), (config.input.tokens + 1, dim), jnp.float32)
        self.positions = nnx.Param(small[1:], axes=(None, "embed")) if config.positions == "learned" else None
        self.class_token = nnx.Param(small[0], axes=("embed",)) if config.pool == "class_token" else None

        def make(block: BlockConfig, layer: LayerInfo, rngs: nnx.Rngs) -> Block:
            return Block(block, dim, norm=config.norm, eps=config.norm_eps, layer=layer, rngs=rngs)

        blocks = [config.pattern[i % len(config.pattern)] for i in range(config.num_layers)]
        self.stack = make_stack(blocks, make, key=rngs.params(), dtype=config.dtype, scan=config.scan_layers)
        self.norm = make_norm(config.norm, dim, config.norm_eps)
        self.head = Linear(dim, config.classes, axes=("embed", "vocab"), bias=True, scale=0.0, rngs=rngs)

    def hidden(
        self, inputs: Array, *, mask: Bool[Array, "B T"] | None = None, form: str = "chunkwise"
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm; with a class token one more than the input has tokens, the last.

        Args:
          inputs: as the config's ``input`` says. mask: true at tokens, false at padding; None: no padding.
          form: "chunkwise", "recurrent" or "parallel".

        Raises:
          ValueError: shapes, or an unknown form.
        """
        x = self.embedding(inputs, jnp.dtype(self.config.dtype))
        batch, time, dim = x.shape
        if time > self.config.input.tokens:
            raise ValueError(f"inputs: expected at most {self.config.input.tokens} tokens a row, got {time}")
        ids = None if mask is None else mask.astype(jnp.int32)
        if self.class_token is not None:
            last = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (batch, 1, dim))
            ids = None if ids is None else jnp.pad(ids, ((0, 0), (0, 1)), constant_values=1)
        ctx, _ = Context.of(batch, time + (self.class_token is not None), segment_ids=ids, form=form)
        if self.positions is not None:
            x = x + self.positions[...].astype(x.dtype)[ctx.positions[:, :time]]
        if self.class_token is not None:
            x = jnp.concatenate([x, last], axis=1)
        x = axes.constrain(x, "batch", "time", "embed")

        def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, None]:
            x, shared = carry
            x, _, after, _ = layers[0](x, None, dataclasses.replace(ctx, shared=shared))
            return (axes.constrain(x, "batch", "time", "embed"), dict(after.shared)), None

        (x, _), _ = scan_layers(body, (x, {}), [self.stack], remat=self.config.remat)
        return self.norm(x)

    def pool(self, hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B D"]:
        """What the head reads; padding, whatever it holds, counts for nothing."""
        if self.class_token is not None:
            return hidden[:, -1]
        wide = hidden.astype(accumulator(hidden))
        if mask is None:
            return wide.mean(axis=1).astype(hidden.dtype)
        total = jnp.where(mask[..., None], wide, jnp.zeros((), wide.dtype)).sum(axis=1)
        count = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1).astype(wide.dtype)
        return (total / count[:, None]).astype(hidden.dtype)

    def __call__(
        self, inputs: Array, *, mask: Bool[Array, "B T"] | None = None, form: str = "chunkwise"
    ) -> Float[Array, "B classes"]:
        """Logits; arguments as for :meth:`hidden`."""
        return self.head(self.pool(self.hidden(inputs, mask=mask, form=form), mask))


def make_classifier(config: ClassifierConfig, seed: int = 0) -> Classifier:
    """A freshly initialised classifier, its parameters in ``param_dtype``."""
    return with_params_in(Classifier(config, rngs=nnx.Rngs(seed)), config.param_dtype)
