"""The decoder language model: embedding, a stack of layers in any pattern of mixers, a head."""

import collections
import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Annotated, Any, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch import axes
from effarch.config import Config
from effarch.mixers.base import Context, LayerInfo, MixerConfig, Progress
from effarch.models.block import TAPS, Block, BlockConfig, NormKind, make_norm
from effarch.models.stack import Body, Layout, make_stack, scan_layers
from effarch.nn.embedding import Embedding
from effarch.nn.head import Head
from effarch.nn.linear import Linear
from effarch.ops.precision import accumulator
from effarch.typing import Array, Bool, Float, Int, PyTree

DType = Literal["float32", "bfloat16", "float16", "float64"]
Pattern = Annotated[tuple[BlockConfig, ...], pydantic.Field(min_length=1)]


class LMConfig(Config):
    """A decoder language model."""

    vocab_size: int = pydantic.Field(258, gt=0, description="rows of the embedding; 258 for bytes")
    dim: int = pydantic.Field(512, gt=0, description="width D of the residual stream")
    num_layers: int = pydantic.Field(6, gt=0, description="layers")
    pattern: Pattern = pydantic.Field((BlockConfig(),), description="layers repeat this list of blocks")
    norm: NormKind = pydantic.Field("rms", description='kind of the norms; "rms_plus_one" multiplies by 1 + w (Gemma)')
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norms")
    deep_norm: bool = pydantic.Field(
        False, description="the residual is (2L)^(1/4) times the normalised input (2203.00555, MiniMax-01)"
    )
    residual_float32: bool = pydantic.Field(False, description="the residual stream is float32 at least (Mamba)")
    parallel_blocks: bool = pydantic.Field(
        False, description="both mixers of a layer read the stream as it enters the layer (GPT-NeoX)"
    )
    post_norms: bool = pydantic.Field(False, description="norms on what mixers put out, too (Gemma 2)")
    embed_scale: bool | Annotated[float, pydantic.Field(gt=0)] = pydantic.Field(
        False, description="factor of the embeddings; true: sqrt(D) rounded to bf16 (Griffin)"
    )
    learned_positions: int | None = pydantic.Field(
        None, gt=0, description="length of the longest document, each place with a learned vector (GPT-2); null: none"
    )
    embed_norm: bool = pydantic.Field(False, description="a norm after the embedding (RWKV)")
    tie_embeddings: bool = pydantic.Field(True, description="the head is the embedding's table")
    logit_cap: float | None = pydantic.Field(None, gt=0, description="cap * tanh(logits / cap); null: none")
    dtype: DType = pydantic.Field("float32", description="of activations and matrix products")
    param_dtype: DType = pydantic.Field("float32", description="of parameters")
    remat: Literal["none", "full", "dots"] = pydantic.Field("none", description="what the backward pass recomputes")
    scan_layers: bool = pydantic.Field(True, description="scan repeated layers in training; false unrolls them")

    @pydantic.model_validator(mode="after")
    def _one_residual(self) -> Self:
        if self.deep_norm and self.parallel_blocks:
            raise ValueError("parallel_blocks: expected false beside deep_norm, got true")
        return self

    @property
    def residual_scale(self) -> float | None:
        """Of the normalised input as residual; None: the residual is the input itself."""
        return (2 * self.num_layers) ** 0.25 if self.deep_norm else None

    def block(self, index: int) -> BlockConfig:
        """The config of layer ``index``."""
        return self.pattern[index % len(self.pattern)]

    @pydantic.field_validator("pattern")
    @classmethod
    def _causal(cls, pattern: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
        for block in pattern:
            if not block.mixer.causal:  # it would see the token that is to be predicted
                raise ValueError(f"pattern: expected causal mixers in a language model, got {block.mixer.type_name}")
        return pattern

    def with_mixer(self, mixer: MixerConfig) -> Self:
        """This model with a mixer in the place of every other, with the head layout of what it stands in for."""
        return self.replace(pattern=tuple(b.replace(mixer=mixer.matching(b.mixer)) for b in self.pattern))

    def state_bytes(self, time: int) -> int:
        """Bytes that decoding carries per row with ``time`` tokens of context, all layers."""
        blocks = collections.Counter(self.block(i) for i in range(self.num_layers))
        return sum(n * _state_bytes(block, self.dim, time, self.dtype) for block, n in blocks.items())

    def flops(self, time: int) -> int:
        """Floating-point operations of the forward pass over one row of ``time`` tokens, head included."""
        total = 2 * time * self.dim * self.vocab_size
        for i in range(self.num_layers):
            block = self.block(i)
            for part in (block.mixer, block.channel):
                total += 0 if part is None else part.flops(self.dim, time)
        return total


@lru_cache(maxsize=4096)
def _state_bytes(block: BlockConfig, dim: int, time: int, dtype: str) -> int:
    """Of one layer; kept, for each takes milliseconds and a break-even asks for sixty."""
    parts = [part for part in (block.mixer, block.channel) if part is not None]
    return sum(part.state_bytes(dim, time, jnp.dtype(dtype)) for part in parts)


@partial(jax.tree_util.register_dataclass, data_fields=["progress", "layers"], meta_fields=["version"])
@dataclasses.dataclass(frozen=True)
class LMState:
    """What is carried between calls, one entry per layer.

    Attributes:
      progress: tokens consumed and document of each row.
      layers: states of the layers, not stacked: decoding unrolls them.
      version: of this layout.
    """

    progress: Progress
    layers: tuple[PyTree, ...]
    version: int = 1


@partial(jax.tree_util.register_dataclass, data_fields=["hidden", "state", "taps"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Output:
    """What a model returns before its head.

    Attributes:
      hidden: ``[B, T, D]`` after the last norm.
      state: carried to the next call; None if none was given.
      taps: by name, ``[L, B, T, D]``.
    """

    hidden: Float[Array, "B T D"]
    state: LMState | None
    taps: dict[str, Float[Array, "L B T D"]]


class LM(nnx.Module):
    """A decoder language model."""

    def __init__(self, config: LMConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        dim = config.dim
        self.embedding = Embedding(config.vocab_size, dim, rngs=rngs)
        self.embed_norm = make_norm(config.norm, dim, config.norm_eps) if config.embed_norm else None

        def make(block: BlockConfig, layer: LayerInfo, rngs: nnx.Rngs) -> Block:
            return Block(
                block,
                dim,
                norm=config.norm,
                eps=config.norm_eps,
                layer=layer,
                residual_scale=config.residual_scale,
                mixer_dtype=jnp.dtype(config.dtype) if config.residual_float32 else None,
                parallel=config.parallel_blocks,
                post_norms=config.post_norms,
                rngs=rngs,
            )

        blocks = [config.block(i) for i in range(config.num_layers)]
        self.stack = make_stack(blocks, make, key=rngs.params(), dtype=config.dtype, scan=config.scan_layers)
        self.norm = make_norm(config.norm, dim, config.norm_eps)
        untied = partial(Linear, dim, config.vocab_size, axes=("embed", "vocab"), rngs=rngs)
        self.unembed = None if config.tie_embeddings else untied()
        learned = partial(Embedding, config.learned_positions, dim, axis=None, rngs=rngs)
        self.position_embedding = None if config.learned_positions is None else learned()

    def init_state(self, batch_size: int, max_length: int) -> LMState:
        """The state before any token, for documents of up to ``max_length`` tokens (the size of KV caches)."""
        most = self.config.learned_positions
        if most is not None and max_length > most:
            raise ValueError(f"max_length: expected at most the {most} learned positions, got {max_length}")
        layers = self.stack.layers()
        return LMState(Progress.start(batch_size), tuple(layer.init_state(batch_size, max_length) for layer in layers))

    def unstacked(self) -> Self:
        """This model with every layer apart: what decoding wants, made once outside its loop."""
        layout = Layout(self.config.num_layers, 1, 0, 0)
        graph, state = nnx.split(self)
        copy = nnx.merge(graph, state)
        copy.stack = self.stack.relaid(layout)
        return copy

    def embed(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None) -> Float[Array, "B T D"]:
        """The residual stream before the first layer.

        Args:
          tokens: ids. positions: of each token in its document, B may be 1; needed where positions are learned.
            Beyond ``learned_positions`` the stream is NaN.

        Raises:
          ValueError: positions are learned, and none are given.
        """
        x = self.embedding(tokens, jnp.dtype(self.config.dtype))
        scale = self.config.embed_scale
        if scale is True:
            x = x * jnp.asarray(self.config.dim**0.5, jnp.bfloat16).astype(x.dtype)
        elif scale:
            x = x * jnp.asarray(scale, x.dtype)
        if self.position_embedding is not None:
            if positions is None:
                raise ValueError("positions: expected those of the tokens, for a model that learned them, got none")
            table = self.position_embedding.table[...].astype(x.dtype)
            x = x + table.at[positions].get(mode="fill", fill_value=jnp.nan)
        x = x if self.embed_norm is None else self.embed_norm(x)
        x = x.astype(accumulator(x)) if self.config.residual_float32 else x
        return axes.constrain(x, "batch", "time", "embed")

    def enter(self, batch: Mapping[str, Array]) -> tuple[Float[Array, "B T D"], Context, Bool[Array, "B T"]]:
        """Of a batch of text, the stream before the first layer, its context, and which positions are tokens."""
        ids = batch["segment_ids"]
        ctx, _ = Context.of(*ids.shape, segment_ids=ids)
        return self.embed(batch["tokens"], ctx.positions), ctx, ids > 0

    def scan_layers(self, body: Body, carry: PyTree, *others: "LM", remat: str | None = None) -> tuple[PyTree, PyTree]:
        """``body(carry, (layer of this model, layer of each other)) -> (carry, y)`` over all layers, together.

        See :func:`effarch.models.stack.scan_layers`.
        """
        stacks = [lm.stack for lm in (self, *others)]
        return scan_layers(body, carry, stacks, remat=self.config.remat if remat is None else remat)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        state: LMState | None = None,
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        form: str = "chunkwise",
        taps: tuple[str, ...] = (),
    ) -> Output:
        """Hidden states after the last norm.

        Args:
          tokens: ids below ``vocab_size`` (larger ones are clamped: the loader refuses them).
          state: carried from the call before; None in training.
          segment_ids: documents of packed rows, 0 is padding; with a state, the id of its document goes on.
          form: "chunkwise" (training, prefill), "recurrent" (decoding) or "parallel".
          taps: names of :data:`effarch.models.block.TAPS` to return for every layer.

        Raises:
          ValueError: shapes, an unknown form or tap.
        """
        if tokens.ndim != 2:
            raise ValueError(f"tokens: expected shape [B, T], got {list(tokens.shape)}")
        if unknown := [name for name in taps if name not in TAPS]:
            raise ValueError(f"taps: expected names of {', '.join(TAPS)}, got {unknown[0]!r}")
        batch, time = tokens.shape
        progress = None if state is None else state.progress
        ctx, progress = Context.of(batch, time, segment_ids=segment_ids, progress=progress, form=form)
        most = self.config.learned_positions
        if most is not None and segment_ids is None and time > most:
            raise ValueError(f"tokens: expected at most the {most} learned positions, got {time}")
        x = self.embed(tokens, ctx.positions)
        if state is None:

            def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, dict[str, Array]]:
                x, shared = carry
                x, _, after, shown = layers[0](x, None, dataclasses.replace(ctx, shared=shared), taps)
                return (axes.constrain(x, "batch", "time", "embed"), dict(after.shared)), shown

            (x, _), shown = self.scan_layers(body, (x, {}))
            return Output(self.normed(x), None, shown)
        states, every = [], []
        for layer, before in zip(self.stack.layers(), state.layers, strict=True):
            x, after, ctx, shown = layer(x, before, ctx, taps)
            states.append(after)
            every.append(shown)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
        return Output(self.normed(x), LMState(progress, tuple(states)), stacked)

    def normed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Hidden states of the stream after the last layer."""
        return self.norm(x).astype(self.config.dtype) if self.config.residual_float32 else self.norm(x)

    @property
    def head(self) -> Head:
        """What makes logits of hidden states: ``lm.head(hidden)``, ``[..., D] -> [..., vocab]``, in their dtype."""
        if self.unembed is None:
            return Head(self.embedding.table[...], rows=True, cap=self.config.logit_cap)
        bias = self.unembed.bias
        return Head(self.unembed.kernel[...], None if bias is None else bias[...], cap=self.config.logit_cap)

    def __call__(
        self, tokens: Int[Array, "B T"], state: LMState | None = None, **options: Any
    ) -> tuple[Float[Array, "B T vocab"], LMState | None]:
        """Logits of short inputs, and the next state; ``options`` as for :meth:`hidden`."""
        output = self.hidden(tokens, state, **options)
        return self.head(output.hidden), output.state


def parameter_count(model: nnx.Module) -> int:
    """How many numbers are trained; what is fixed (decays, random features) is not counted. It may be abstract."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.split(model, nnx.Param, ...)[1]))


M = TypeVar("M", bound=nnx.Module)


def with_params_in(model: M, dtype: str) -> M:
    """The model with its parameters in ``dtype``; itself where they are already."""
    if jnp.dtype(dtype) == jnp.float32:
        return model
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params), rest)


def make_lm(config: LMConfig, seed: int = 0) -> LM:
    """A freshly initialised model, its parameters in ``param_dtype``."""
    return with_params_in(LM(config, rngs=nnx.Rngs(seed)), config.param_dtype)
