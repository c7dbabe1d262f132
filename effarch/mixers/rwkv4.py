"""RWKV-4 (2305.13048): the time mix.

    o_t = (num_{t-1} + e^(u + k_t) v_t) / (den_{t-1} + e^(u + k_t))        w = e^(-e^omega)
    (num, den)_t = w (num, den)_{t-1} + e^k_t (v_t, 1)
    y_t = W_o (sigmoid(r_t) * o_t)

Everything is elementwise: an average of the values over time, per channel, under weights e^k that decay. omega and u
are learned, one per channel. r, k and v each read a lerp of x_t and x_{t-1} (``mix`` is one minus the authors'
time_mix). There are no heads: ``num_heads * head_dim`` is how many channels there are, laid out as a teacher's heads.
"""

import math
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.rwkv5 import initial_mix
from effarch.mixers.time_mix import PER_HEAD, TimeMix, TimeMixConfig, ramp, zigzag
from effarch.nn.lerp import Lerps
from effarch.ops.conv import token_shift
from effarch.ops.decayed_average import CHUNK, Pair, decayed_average
from effarch.ops.precision import accumulator
from effarch.registry import register
from effarch.typing import Array


@register("rwkv4", kind="mixer")
class RWKV4(TimeMixConfig):
    """An average over time per channel, with a fixed decay and a bonus for the token itself."""

    context_parallel: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("chunkwise", "recurrent")
    transition: ClassVar[str] = "elementwise, normalised"
    paper: ClassVar[str] = "2305.13048 RWKV: Reinventing RNNs for the Transformer Era"

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "RWKV4Mixer":
        return RWKV4Mixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return time * self.width * (8 * dim + 16)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8), 32


class RWKV4Mixer(TimeMix):
    """The module; see the file. Its state: the pair, [B, H, K] float32 three times, and the last input [B, D]."""

    def __init__(self, config: RWKV4, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        powers = {"r": 0.5, "k": 1.0, "v": 1.0}
        mix = Lerps({name: initial_mix(name, power, dim, layer) for name, power in powers.items()})
        super().__init__(config, dim, mix, layer=layer, scales=(0.0, 0.0, 1.0), rngs=rngs)
        shape = config.num_heads, config.head_dim
        speed = -5.0 + 8.0 * ramp(*shape) ** (0.7 + 1.3 * layer.depth)
        self.omega = nnx.Param(speed, axes=PER_HEAD)
        self.bonus = nnx.Param(math.log(0.3) + 0.5 * zigzag(*shape), axes=PER_HEAD)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Pair, Array]:
        shape = (batch_size, self.config.num_heads, self.config.head_dim)
        return Pair.empty(shape, jnp.float32), jnp.zeros((batch_size, self.dim), self.dtype)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        pair, last = (None, None) if state is None else state
        previous, last = token_shift(x, state=last, segment_ids=ctx.segments)
        mixed = self.mix(x, previous)
        wide = accumulator(x)
        o, pair = decayed_average(
            self.k(mixed["k"]),
            self.v(mixed["v"]),
            log_decay=-jnp.exp(self.omega[...].astype(wide)),
            bonus=self.bonus[...].astype(wide),
            state=pair,
            segment_ids=ctx.segments,
            chunk_size=1 if ctx.form == "recurrent" else CHUNK,
        )
        y = self.o(jax.nn.sigmoid(self.r(mixed["r"])) * o)
        return y, None if state is None else (pair, last), ctx
