"""Any causal recurrence over both directions of time, for encoders and images.

    y = f(x) + R f(R x) - self(x)        R: time reversed        self(x)_t = f of the document that is x_t alone

f is a whole mixer and the sum is over its outputs: what f does after its recurrence (norm, gate) it does three times.
Where f is linear in what it reads from its state, that is the recurrence's own forward + backward - self: y_t has every
token of t's document once. With a norm on o it is a sum of three normalised terms instead; still a document of one
token gives f of it, and reversing x reverses y. A short convolution looks back in its own direction; self sees no
neighbour at all.

The reversed row has its documents in reverse order, so runs and positions are found anew from its ids; padding stays
the identity. The three passes are one call on 3 B rows. Values that f passes from layer to layer (RWKV-7) cross among
layers with the same inner mixer, each pass its own. Without ``share_weights`` a second mixer g reads the reversed row,
and self is the mean of f's and g's.
"""

import dataclasses
from typing import ClassVar, Self, cast

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerChoice, MixerConfig
from effarch.mixers.gated_deltanet import GatedDeltaNet
from effarch.mixers.softmax_attention import Attention, StandIn
from effarch.registry import register
from effarch.typing import Array


@register("bidirectional", kind="mixer")
class Bidirectional(MixerConfig):
    """A recurrent mixer in both directions; a sequence may be split over devices where the inner mixer's may."""

    causal: ClassVar[bool] = False
    context_parallel: ClassVar[bool] = True
    paper: ClassVar[str] = "2401.09417 Vision Mamba: Efficient Visual Representation Learning with Bidirectional SSM"

    inner: MixerChoice = pydantic.Field(GatedDeltaNet(), description="a recurrent mixer")
    share_weights: bool = pydantic.Field(True, description="one mixer for both directions; false: one for each")
    subtract_self: bool = pydantic.Field(
        True, description="count each token once; false: forward + backward, two thirds of the work"
    )

    @pydantic.field_validator("inner")
    @classmethod
    def _recurrence(cls, inner: MixerConfig) -> MixerConfig:
        if not (inner.causal and inner.recurrent):
            raise ValueError(f"inner: expected a causal recurrent mixer, got {inner.type_name}")
        return inner

    @property
    def shares(self) -> str:
        """The inner mixer's, in this arrangement of rows."""
        return f"{self.type_name}-{self.share_weights:d}{self.subtract_self:d}-{self.inner.shares}"

    def matching(self, attention: MixerConfig) -> Self:
        """With the head layout of an encoder's attention, where the inner mixer's is the default."""
        return self.replace(inner=self.inner.matching(attention))

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "BidirectionalMixer":
        return BidirectionalMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        passes = 2 + self.subtract_self * (1 if self.share_weights else 2)
        return passes * self.inner.flops(dim, time)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        inner, dim = GatedDeltaNet.tiny()
        return cls(inner=inner), dim


class BidirectionalMixer(Mixer):
    """The module; see the file. It carries no state: a row is whole."""

    def __init__(self, config: Bidirectional, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.ahead = config.inner.make(dim, layer=layer, rngs=rngs)
        self.back = None if config.share_weights else config.inner.make(dim, layer=layer, rngs=rngs)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        if state is not None:
            raise ValueError("state: expected None, for a bidirectional mixer sees whole rows, got one to go on from")
        ids = jnp.ones(x.shape[:2], jnp.int32) if ctx.segments is None else ctx.segments.run
        clock = jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32)[None]
        forward, backward = (x, ids), (x[:, ::-1], ids[:, ::-1])
        alone = [(x, jnp.where(ids > 0, clock, 0))] if self.config.subtract_self else []
        if self.back is None:
            (y, reverse, *own), ctx = self._rows(self.ahead, [forward, backward, *alone], ctx, "ahead")
        else:
            (y, *own), ctx = self._rows(self.ahead, [forward, *alone], ctx, "ahead")
            (reverse, *others), ctx = self._rows(self.back, [backward, *alone], ctx, "back")
            own = [0.5 * (mine + other) for mine, other in zip(own, others, strict=True)]
        return sum(((-z) for z in own), start=y + reverse[:, ::-1]), None, ctx

    def from_attention(self, attention: Attention) -> Self:
        """Copies the projections of an encoder's attention, into the mixers of both directions. Returns self.

        Raises:
          ValueError: the inner mixer takes over no weights of attention.
        """
        inner = self.config.inner
        if not inner.stands_in_for_attention:
            raise ValueError(f"inner: expected one that takes over attention's weights, got {inner.type_name}")
        for mixer in (self.ahead, self.back):
            if mixer is not None:
                cast(StandIn, mixer).from_attention(attention)
        return self

    def _rows(
        self, mixer: Mixer, views: list[tuple[Array, Array]], ctx: Context, name: str
    ) -> tuple[list[Array], Context]:
        """``mixer`` on several views of each row in one call; views of a row stay neighbours, as the batch is split."""
        x, ids = (jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:]) for parts in zip(*views, strict=True))
        prefix = f"{self.config.shares}-{name}:"
        shared = {key.removeprefix(prefix): value for key, value in ctx.shared.items() if key.startswith(prefix)}
        inner, _ = Context.of(*ids.shape, segment_ids=ids, form=ctx.form)
        y, _, inner = mixer(x, None, dataclasses.replace(inner, shared=shared))
        y = y.reshape(-1, len(views), *y.shape[1:])
        return [y[:, i] for i in range(len(views))], ctx.share(**{prefix + key: v for key, v in inner.shared.items()})
