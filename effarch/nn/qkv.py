"""Query, key and value projections with grouped heads, and the projection back."""

from functools import partial

from flax import nnx

from effarch.nn.linear import Linear
from effarch.typing import Array, Float


class Projections(nnx.Module):
    """``q [B,T,H,K]``, ``k [B,T,Hk,K]`` and ``v [B,T,Hk,V]`` from ``x [B,T,D]``.

    Args:
      dim: width of x. heads: of q. kv_heads: of k and v, divides ``heads``.
      key_dim, value_dim: per head. bias: whether they have one.
    """

    def __init__(
        self, dim: int, *, heads: int, kv_heads: int, key_dim: int, value_dim: int, bias: bool = False, rngs: nnx.Rngs
    ) -> None:
        into = partial(Linear, dim, axes=("embed", "heads", "head_dim"), bias=bias, rngs=rngs)
        self.q = into((heads, key_dim))
        self.k = into((kv_heads, key_dim))
        self.v = into((kv_heads, value_dim))

    def __call__(self, x: Float[Array, "B T D"]) -> tuple[Array, Array, Array]:
        return self.q(x), self.k(x), self.v(x)


class QKV(Projections):
    """Those, and ``o [B,T,H,V]`` back to ``[B,T,D]``.

    Args:
      dim: width of x. heads: of q and o. kv_heads: of k and v, divides ``heads``.
      key_dim, value_dim: per head. bias: on q, k and v. out_bias: on o.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        kv_heads: int,
        key_dim: int,
        value_dim: int,
        bias: bool = False,
        out_bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = {"heads": heads, "kv_heads": kv_heads, "key_dim": key_dim, "value_dim": value_dim}
        super().__init__(dim, **sizes, bias=bias, rngs=rngs)
        self.o = Linear((heads, value_dim), dim, axes=("heads", "head_dim", "embed"), bias=out_bias, rngs=rngs)
