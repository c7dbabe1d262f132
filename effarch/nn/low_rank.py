"""Low-rank maps: how gates and decays per channel are made of few parameters."""

from collections.abc import Callable, Sequence

from flax import nnx

from effarch.nn.linear import Linear
from effarch.ops.channels import over_tokens
from effarch.typing import Array, Float


def _same(x: Array) -> Array:
    return x


class LowRank(nnx.Module):
    """``act(x A) B (+ bias)``, x ``[..., D]``.

    Args:
      dim: width of x. rank: width between A and B.
      outputs: sizes of the axes that are made. axes: a logical name (or None) for each.
      bias: its initial value, of shape ``outputs``; None: no bias.
      scales: variances of the normal initialisation of A and B times fan-in; 0 starts at zero.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        outputs: int | Sequence[int],
        *,
        axes: tuple[str | None, ...],
        bias: Array | None = None,
        scales: tuple[float, float] = (1.0, 1.0),
        rngs: nnx.Rngs,
    ) -> None:
        self.inner = Linear(dim, rank, axes=("embed", "rank"), scale=scales[0], rngs=rngs)
        self.outer = Linear(rank, outputs, axes=("rank", *axes), scale=scales[1], rngs=rngs)
        self.bias = None if bias is None else nnx.Param(bias, axes=axes)

    def __call__(self, x: Float[Array, "... D"], act: Callable[[Array], Array] = _same) -> Float[Array, "..."]:
        y = self.outer(act(self.inner(x)))
        return y if self.bias is None else y + over_tokens(self.bias[...], y)
