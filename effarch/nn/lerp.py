"""Interpolations between a token and the one before it, per channel: the token shift of RWKV."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.nn.linear import Linear
from effarch.ops.channels import over_tokens
from effarch.typing import Array, Float


def curve(dim: int, power: float | Array, offset: float | Array = 0.0) -> Float[Array, " D"]:
    """Initial mix ``1 - (n / D)^power - offset`` of channel n: the first channels look back, the last do not."""
    return 1.0 - (jnp.arange(dim, dtype=jnp.float32) / dim) ** power - offset


class Lerps(nnx.Module):
    """``x + (previous - x) * mix`` for several named mixes: 0 is no shift, 1 is the token before.

    RWKV-4 and RWKV-5 store 1 - mix.

    Args:
      mixes: their initial values by name, ``[D]`` each.
    """

    def __init__(self, mixes: Mapping[str, Array]) -> None:
        self.names = tuple(mixes)
        for name, mix in mixes.items():
            setattr(self, name, nnx.Param(mix, axes=("embed",)))

    def __call__(self, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]) -> dict[str, Array]:
        back = previous - x
        return {name: x + back * over_tokens(getattr(self, name)[...], x) for name in self.names}

    def vanish(self) -> None:
        """Sets every mix to 0: no shift."""
        for name in self.names:
            mix = getattr(self, name)
            mix[...] = jnp.zeros_like(mix[...])


class TokenLerps(Lerps):
    """Lerps whose mixes depend on the token (RWKV-6): ``mix + tanh(lerp(x, previous, base) W_1) W_2``.

    Args:
      mixes: initial values by name, ``[D]`` each. base: that of the lerp which all the others depend on, ``[D]``.
      rank: width between W_1 and W_2. rngs: initialisation; W_1 starts at zero.
    """

    def __init__(self, mixes: Mapping[str, Array], base: Array, rank: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(mixes)
        (dim,), count = base.shape, len(mixes)
        self.base = nnx.Param(base, axes=("embed",))
        self.inner = Linear(dim, (count, rank), axes=("embed", None, "rank"), scale=0.0, rngs=rngs)
        outer = jax.random.uniform(rngs.params(), (count, rank, dim), jnp.float32, -0.01, 0.01)
        self.outer = nnx.Param(outer, axes=(None, "rank", "embed"))

    def __call__(self, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]) -> dict[str, Array]:
        back = previous - x
        hidden = jnp.tanh(self.inner(x + back * over_tokens(self.base[...], x)))
        mixed = {}
        for i, name in enumerate(self.names):
            shift = jnp.tensordot(hidden[:, :, i], self.outer[i].astype(x.dtype), axes=1)
            mixed[name] = x + back * (over_tokens(getattr(self, name)[...], x) + shift)
        return mixed

    def vanish(self) -> None:
        """Sets every mix to 0 for every token: no shift."""
        super().vanish()
        self.inner.kernel[...] = jnp.zeros_like(self.inner.kernel[...])
