"""The Fourier sublayer of FNet (2105.03824): no parameters at all.

    y = Re(F_T x F_D)        F_n: the discrete Fourier transform of n points, [n, n], entries e^(-2 pi i jk / n)

Any T, O(T log T); every token sees all others. The other half of a layer is ``gelu_mlp``. The paper normalises after
each residual sum, our blocks before each mixer. No documents or padding (a transform of part of the row is another
transform), and nothing that attention's weights could stand for. The authors truncate and pad to one length, and on TPUs
multiply by the matrices F for short rows.
"""

from typing import ClassVar, Self

import jax.numpy as jnp
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, whole_rows_only
from effarch.ops.precision import accumulator
from effarch.registry import register
from effarch.typing import Array


@register("fnet", kind="mixer")
class FNet(MixerConfig):
    """The real part of the Fourier transform over tokens and channels."""

    causal: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    stands_in_for_attention: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel",)
    paper: ClassVar[str] = "2105.03824 FNet: Mixing Tokens with Fourier Transforms"

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "FNetMixer":
        return FNetMixer()

    def flops(self, dim: int, time: int) -> int:
        points = time * dim
        return 5 * points * (points - 1).bit_length() // 2  # the usual count, halved for real input

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(), 32


class FNetMixer(Mixer):
    """The module; see the file."""

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        whole_rows_only("fnet", ctx)
        width = x.shape[2]
        half = jnp.fft.rfft2(x.astype(accumulator(x)), axes=(1, 2)).real  # channels 0 to width // 2
        mirrored = jnp.roll(half[:, ::-1], 1, axis=1)[:, :, (width - 1) // 2 : 0 : -1]  # y[t, d] = y[-t, -d]: x is real
        return jnp.concatenate([half, mirrored], axis=2).astype(x.dtype), state, ctx
