"""The encoder of images and texts: an embedding, the decoder's stack of blocks, pooling. Heads stand on top of it.

Its mixers may see both directions. One row is one image or one text. BERT (1810.04805) and ViT (2010.11929) are two
of its configs: :class:`effarch.models.classifier.Classifier` and :class:`effarch.models.masked_lm.MaskedLM` add heads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch import axes
from effarch.config import Config
from effarch.mixers.base import Context, LayerInfo
from effarch.models.block import TAPS, Block, BlockConfig, NormKind, make_norm
from effarch.models.inputs import Ids, InputConfig, Patches
from effarch.models.lm import DType, Output, Pattern, with_params_in
from effarch.models.stack import make_stack, scan_layers
from effarch.nn.embedding import Embedding
from effarch.nn.linear import Linear
from effarch.ops.precision import accumulator
from effarch.registry import Choice
from effarch.typing import Array, Bool, Float, Int


class EncoderConfig(Config):
    """An encoder."""

    input: Annotated[InputConfig, Choice("input")] = Patches()
    dim: int = pydantic.Field(512, gt=0, description="width D of the residual stream")
    num_layers: int = pydantic.Field(8, gt=0, description="layers")
    pattern: Pattern = pydantic.Field(
        (BlockConfig(mixer="mlp_mixer", channel="gelu_mlp"),), description="layers repeat this list of blocks"
    )
    norm: NormKind = pydantic.Field("layer", description='kind of the norms; "affine" only scales and shifts (ResMLP)')
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norms")
    norm_after: bool = pydantic.Field(
        False, description="norms behind every addition, none before the head (BERT); false: before the mixers"
    )
    positions: Literal["none", "learned"] = pydantic.Field(
        "none", description='"learned" adds an embedding of each position; mixers of one length need none'
    )
    embed_norm: bool = pydantic.Field(False, description="a norm after the embedding (BERT)")
    pool: Literal["mean", "first", "class_token", "class_token_first"] = pydantic.Field(
        "mean",
        description="what the head reads: the mean of all tokens, the first one (BERT), or a learned token after the "
        "last or before the first (ViT), where it has a position",
    )
    pooler: bool = pydantic.Field(False, description="the head reads tanh(W x + b) of it (BERT)")
    dtype: DType = pydantic.Field("float32", description="of activations and matrix products")
    param_dtype: DType = pydantic.Field("float32", description="of parameters")
    remat: Literal["none", "full", "dots"] = pydantic.Field("none", description="what the backward pass recomputes")
    scan_layers: bool = pydantic.Field(True, description="scan repeated layers; false unrolls them")

    @property
    def added(self) -> int:
        """Tokens beside the input's: the class token."""
        return int(self.pool in ("class_token", "class_token_first"))

    @property
    def length(self) -> int:
        """Tokens that mixers see, at most: the input's, and the class token."""
        return self.input.tokens + self.added

    def block(self, index: int) -> BlockConfig:
        """The config of layer ``index``."""
        return self.pattern[index % len(self.pattern)]

    @pydantic.model_validator(mode="after")
    def _lengths(self) -> Self:
        for mixer in (block.mixer for block in self.pattern if block.mixer.fixed_length):
            made_for = getattr(mixer, "length", None)
            if made_for != self.length:
                raise ValueError(
                    f"pattern: expected length {self.length} (tokens of a row) in {mixer.type_name}, got {made_for}"
                )
        return self


class Encoder(nnx.Module):
    """An encoder: hidden states of images and texts, and one vector of each."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        dim, leading = config.dim, config.pool == "class_token_first"
        self.embedding = config.input.make(dim, rngs)
        rows = config.input.tokens + leading
        small = 0.02 * jax.random.normal(rngs.params(), (rows + 1, dim), jnp.float32)
        self.positions = nnx.Param(small[1:], axes=(None, "embed")) if config.positions == "learned" else None
        self.class_token = nnx.Param(small[0], axes=("embed",)) if config.added else None
        types = config.input.token_types if isinstance(config.input, Ids) else 0
        self.token_types = Embedding(types, dim, axis=None, rngs=rngs) if types else None
        self.embed_norm = make_norm(config.norm, dim, config.norm_eps) if config.embed_norm else None

        def make(block: BlockConfig, layer: LayerInfo, rngs: nnx.Rngs) -> Block:
            norm, eps, after = config.norm, config.norm_eps, config.norm_after
            return Block(block, dim, norm=norm, eps=eps, norm_after=after, layer=layer, rngs=rngs)

        blocks = [config.block(i) for i in range(config.num_layers)]
        self.stack = make_stack(blocks, make, key=rngs.params(), dtype=config.dtype, scan=config.scan_layers)
        self.norm = None if config.norm_after else make_norm(config.norm, dim, config.norm_eps)
        pooler = config.pooler
        self.pooler = Linear(dim, dim, axes=("embed", None), bias=True, rngs=rngs) if pooler else None

    def enter(self, batch: Mapping[str, Array]) -> tuple[Float[Array, "B T D"], Context, Float[Array, "B T"]]:
        """Of a batch, the stream before the first layer, its context, and which positions count.

        Args:
          batch: ``inputs`` and, where there are any, ``mask``, ``token_types`` and ``weights [B]`` of the rows.
        """
        x, ctx = self.embed(batch["inputs"], mask=batch.get("mask"), token_types=batch.get("token_types"))
        real = jnp.ones(x.shape[:2], bool) if ctx.segments is None else ctx.segments.real
        counts = real.astype(jnp.float32)
        return x, ctx, counts if "weights" not in batch else counts * batch["weights"][:, None]

    def embed(
        self,
        inputs: Array,
        *,
        mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        form: str = "chunkwise",
    ) -> tuple[Float[Array, "B T D"], Context]:
        """The stream before the first layer, class token included, and its context; arguments as :meth:`hidden`."""
        x = self.embedding(inputs, jnp.dtype(self.config.dtype))
        batch, time, dim = x.shape
        if time > self.config.input.tokens:
            raise ValueError(f"inputs: expected at most {self.config.input.tokens} tokens a row, got {time}")
        if mask is not None and mask.dtype != bool and self.class_token is not None:
            raise ValueError("mask: expected true and false, for a class token stands for one text a row, got numbers")
        if token_types is not None and self.token_types is None:
            raise ValueError("token_types: expected none, for the encoder has no embedding of them")
        if self.token_types is not None:  # a text without them is all of the first
            kinds = jnp.zeros((1, time), jnp.int32) if token_types is None else token_types
            x = x + self.token_types(kinds, x.dtype)
        ids, leading = None if mask is None else mask.astype(jnp.int32), self.config.pool == "class_token_first"
        if self.class_token is not None:
            token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (batch, 1, dim))
            x = jnp.concatenate([token, x] if leading else [x, token], axis=1)
            around = (1, 0) if leading else (0, 1)
            ids = None if ids is None else jnp.pad(ids, ((0, 0), around), constant_values=1)
        ctx, _ = Context.of(batch, x.shape[1], segment_ids=ids, form=form)
        if self.positions is not None:
            places = self.positions[...].astype(x.dtype)
            if self.class_token is not None and not leading:  # it has none
                places = places.at[ctx.positions].get(mode="clip").at[:, -1].set(0)
            else:
                places = places[ctx.positions]
            x = x + places
        x = x if self.embed_norm is None else self.embed_norm(x)
        return axes.constrain(x, "batch", "time", "embed"), ctx

    def hidden(
        self,
        inputs: Array,
        *,
        mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        form: str = "chunkwise",
        taps: tuple[str, ...] = (),
    ) -> Output:
        """Hidden states after the last norm, without a state; with a class token one more than the input has tokens.

        Args:
          inputs: as the config's ``input`` says. mask: true at tokens, false at padding; None: no padding. Or the
            numbers of the texts that a row is packed with, 0 at padding: each is read by itself. Positions are counted
            from a text's first token. token_types: of each token, below ``input.token_types``; None: all 0.
          form: "chunkwise", "recurrent" or "parallel".
          taps: names of :data:`effarch.models.block.TAPS` to return for every layer.

        Raises:
          ValueError: shapes, an unknown form or tap.
        """
        if unknown := [name for name in taps if name not in TAPS]:
            raise ValueError(f"taps: expected names of {', '.join(TAPS)}, got {unknown[0]!r}")
        x, ctx = self.embed(inputs, mask=mask, token_types=token_types, form=form)

        def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, dict[str, Array]]:
            x, shared = carry
            x, _, after, shown = layers[0](x, None, dataclasses.replace(ctx, shared=shared), taps)
            return (axes.constrain(x, "batch", "time", "embed"), dict(after.shared)), shown

        (x, _), shown = scan_layers(body, (x, {}), [self.stack], remat=self.config.remat)
        return Output(x if self.norm is None else self.norm(x), None, shown)

    def pool(self, hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None) -> Float[Array, "B D"]:
        """One vector of each row, what a head reads; padding, whatever it holds, counts for nothing."""
        pooled = self._pool(hidden, mask)
        return pooled if self.pooler is None else jnp.tanh(self.pooler(pooled))

    def _pool(self, hidden: Array, mask: Array | None) -> Array:
        pool = self.config.pool
        if pool == "class_token":
            return hidden[:, -1]
        if pool == "class_token_first":
            return hidden[:, 0]
        if pool == "first":  # behind padding on the left
            at = 0 if mask is None else jnp.argmax(mask, axis=1)
            return hidden[jnp.arange(len(hidden)), at]
        wide = hidden.astype(accumulator(hidden))
        if mask is None:
            return wide.mean(axis=1).astype(hidden.dtype)
        total = jnp.where(mask[..., None], wide, jnp.zeros((), wide.dtype)).sum(axis=1)
        count = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1).astype(wide.dtype)
        return (total / count[:, None]).astype(hidden.dtype)


def make_encoder(config: EncoderConfig, seed: int = 0) -> Encoder:
    """A freshly initialised encoder without a head, its parameters in ``param_dtype``."""
    return with_params_in(Encoder(config, rngs=nnx.Rngs(seed)), config.param_dtype)
