"""RWKV-5 "Eagle" (2404.05892): the time mix of version 5.2.

    o_t = (S_{t-1} + (u * k_t) v_t^T)^T r_t        S_t = Diag(w) S_{t-1} + k_t v_t^T        w = e^(-e^omega)
    y_t = W_o (GroupNorm(o_t) * silu(W_g x_t))

A token reads the state before its own key enters, which it weighs by the bonus u instead of a decay. omega and u are
learned, one per channel of a key. Each input is a lerp of x_t and x_{t-1} (``mix`` is one minus the authors' time_mix).
The authors divide o by 8 and norm with eps 1e-5, which is eps 64e-5 here. Versions 5.0 and 5.1 had one w and one u per
head, 5.0 no gate.
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.mixers.base import Context, LayerInfo
from effarch.mixers.time_mix import PER_HEAD, TimeMix, TimeMixConfig, ramp, zigzag
from effarch.nn.lerp import Lerps, curve
from effarch.nn.linear import Linear
from effarch.ops.channels import over_tokens
from effarch.ops.conv import token_shift
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Diagonal, linear_recurrence
from effarch.registry import register
from effarch.typing import Array


@register("rwkv5", kind="mixer")
class RWKV5(TimeMixConfig):
    """A fixed decay per channel, a bonus for the token itself."""

    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "diagonal"
    paper: ClassVar[str] = "2404.05892 Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence"

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "RWKV5Mixer":
        powers = {"r": 0.5, "k": 1.0, "v": 1.0, "g": 0.5}
        mix = Lerps({name: initial_mix(name, power, dim, layer) for name, power in powers.items()})
        return RWKV5Mixer(self, dim, mix, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        return time * 10 * dim * self.width + self.recurrence_flops("decay", time)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8), 32


def initial_mix(name: str, power: float, dim: int, layer: LayerInfo) -> Array:
    """The initial lerp called ``name`` of layer i of L, with the curve's exponent ``power (1 - i / L)``."""
    offset = 0.3 * layer.depth if name == "v" else 0.0
    return curve(dim, power * (1.0 - layer.index / layer.count), offset)


class RWKV5Mixer(TimeMix):
    """The module; see the file. Its state: S [B, H, K, V] float32, and the last input [B, D]."""

    def __init__(self, config: TimeMixConfig, dim: int, mix: Lerps, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        super().__init__(config, dim, mix, layer=layer, rngs=rngs)
        heads, width = config.num_heads, config.head_dim
        self.gate = Linear(dim, (heads, width), axes=("embed", *PER_HEAD), scale=0.01, rngs=rngs)
        channel = ramp(heads, width)
        self.make_decay(-6.0 + 5.0 * channel ** (0.7 + 1.3 * layer.depth), rngs)
        self.bonus = nnx.Param(layer.depth * (1.0 - channel) + 0.1 * zigzag(heads, width), axes=PER_HEAD)
        self.norm = self.head_norm(layer)

    def make_decay(self, speed: Array, rngs: nnx.Rngs) -> None:
        """Makes the parameters of the decay, omega at first ``speed [H, K]``."""
        self.omega = nnx.Param(speed, axes=PER_HEAD)

    def speed(self, mixed: dict[str, Array], k: Array) -> Array:
        """Omega of every token, ``[B, T, H, K]``, in the accumulator's dtype."""
        return over_tokens(self.omega[...], k.astype(accumulator(k)))

    def mixing_matrix(self, x: Array, ctx: Context, *, weights: bool = False) -> Array:
        """Refused: the bonus stands beside the recurrence."""
        raise self.no_matrix("a mixing matrix of its recurrence alone")

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        s, last = (None, None) if state is None else state
        previous, last = token_shift(x, state=last, segment_ids=ctx.segments)
        mixed = self.mix(x, previous)
        r, k, v = self.r(mixed["r"]), self.k(mixed["k"]), self.v(mixed["v"])
        transition = Diagonal(-jnp.exp(self.speed(mixed, k)))
        o, s = linear_recurrence(
            r, k, v, transition=transition, read="before", state=s, segment_ids=ctx.segments, form=ctx.form
        )
        o = o + (r * k * over_tokens(self.bonus[...], k)).sum(axis=-1, keepdims=True) * v
        y = self.o(self.norm(o) * jax.nn.silu(self.gate(mixed["g"])))
        return y, None if state is None else (s, last), ctx
