"""One layer: a sequence mixer and a channel mixer, each behind a norm, each added to the residual stream."""

from typing import Any, Literal

import pydantic
from flax import nnx

from effarch.config import Config
from effarch.mixers.base import ChannelChoice, Context, LayerInfo, MixerChoice
from effarch.nn.norm import Affine, LayerNorm, RMSNorm
from effarch.typing import Array, Float, PyTree

#: What a block can be asked to show of itself, by name. All are [B, T, D].
TAPS = ("mixer_in", "mixer_out", "block_in", "block_out")


class BlockConfig(Config):
    """Which mixers a layer has."""

    mixer: MixerChoice = pydantic.Field("softmax_attention", validate_default=True, description="the sequence mixer")
    channel: ChannelChoice | None = pydantic.Field(
        "swiglu", validate_default=True, description="the channel mixer; null: none"
    )


NormKind = Literal["rms", "rms_plus_one", "layer", "affine"]


def make_norm(kind: NormKind, dim: int, eps: float) -> RMSNorm | LayerNorm | Affine:
    """The norm of that name; "rms_plus_one" multiplies by 1 + its weight, "affine" only scales and shifts."""
    if kind == "affine":
        return Affine(dim)
    return LayerNorm(dim, eps=eps) if kind == "layer" else RMSNorm(dim, eps=eps, plus_one=kind == "rms_plus_one")


class Block(nnx.Module):
    """``h = x + mixer(norm(x))``, ``y = h + channel(norm(h))``.

    In ``parallel``: ``y = x + mixer(norm(x)) + channel(norm'(x))`` (GPT-NeoX). With ``post_norms``, outputs pass a norm
    before they are added (Gemma 2); the tap "mixer_out" is taken ahead of it.
    With ``norm_after``: ``h = norm(x + mixer(x))``, ``y = norm(h + channel(h))`` (1706.03762, BERT).
    With a ``residual_scale`` s: ``h = s norm(x) + mixer(norm(x))``, and y likewise.

    Args:
      config: the mixers. dim: width of the model. norm, eps: kind of the norms. layer: where it stands.
      residual_scale: of the normalised input, which then is what outputs are added to; None: x itself.
      mixer_dtype: of what mixers read, where x has another; None: that of x.
      parallel, post_norms, norm_after: see above.
    """

    def __init__(
        self,
        config: BlockConfig,
        dim: int,
        *,
        norm: NormKind,
        eps: float,
        layer: LayerInfo,
        residual_scale: float | None = None,
        mixer_dtype: Any | None = None,
        parallel: bool = False,
        post_norms: bool = False,
        norm_after: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.residual_scale = residual_scale
        self.norm_after = norm_after
        self.mixer_dtype = mixer_dtype
        self.parallel = parallel
        self.mixer_norm = make_norm(norm, dim, eps)
        self.mixer = config.mixer.make(dim, layer=layer, rngs=rngs)
        self.channel_norm = None if config.channel is None else make_norm(norm, dim, eps)
        self.channel = None if config.channel is None else config.channel.make(dim, layer=layer, rngs=rngs)
        self.mixer_post_norm = make_norm(norm, dim, eps) if post_norms else None
        self.channel_post_norm = make_norm(norm, dim, eps) if post_norms and config.channel is not None else None

    def init_state(self, batch_size: int, max_length: int) -> tuple[PyTree, PyTree]:
        """The states of the two mixers before any token."""
        channel = () if self.channel is None else self.channel.init_state(batch_size, max_length)
        return self.mixer.init_state(batch_size, max_length), channel

    def _read(self, normalised: Array) -> Array:
        """What a mixer reads."""
        return normalised if self.mixer_dtype is None else normalised.astype(self.mixer_dtype)

    def _add(self, x: Array, normalised: Array, output: Array, norm: nnx.Module | None) -> Array:
        """A mixer's output, through its norm if it has one, added to the residual."""
        output = output if norm is None else norm(output)
        residual = x if self.residual_scale is None else normalised * self.residual_scale
        return residual + output.astype(x.dtype)

    def __call__(
        self, x: Float[Array, "B T D"], state: tuple | None, ctx: Context, taps: tuple[str, ...] = ()
    ) -> tuple[Float[Array, "B T D"], tuple | None, Context, dict[str, Array]]:
        """The layer's output, its next state, the context for the next layer, and what ``taps`` asked for."""
        mixer_state, channel_state = (None, None) if state is None else state
        normalised = x if self.norm_after else self.mixer_norm(x)
        mixer_in = self._read(normalised)
        mixer_out, mixer_state, ctx = self.mixer(mixer_in, mixer_state, ctx)
        y = self._add(x, normalised, mixer_out, self.mixer_post_norm)
        y = self.mixer_norm(y) if self.norm_after else y
        if self.channel is not None and self.channel_norm is not None:
            normalised = y if self.norm_after else self.channel_norm(x if self.parallel else y)
            channel_out, channel_state, ctx = self.channel(self._read(normalised), channel_state, ctx)
            y = self._add(y, normalised, channel_out, self.channel_post_norm)
            y = self.channel_norm(y) if self.norm_after else y
        shown = {"mixer_in": mixer_in, "mixer_out": mixer_out, "block_in": x, "block_out": y}
        return y, None if state is None else (mixer_state, channel_state), ctx, {name: shown[name] for name in taps}
