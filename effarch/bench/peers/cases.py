"""The operations that peers are compared with: random inputs as numpy, and ours as a function of them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from effarch.ops.attention import softmax_attention
from effarch.ops.recurrence import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, Transition, linear_recurrence
from effarch.typing import Array

Inputs = Mapping[str, np.ndarray]

TRANSITIONS: dict[str, Callable[[Mapping[str, Array]], Transition]] = {
    "constant": lambda x: Constant(retention_decay(x["v"].shape[2])),
    "scalar": lambda x: Scalar(x["log_decay"]),
    "diagonal": lambda x: Diagonal(x["log_decay"]),
    "delta": lambda x: Delta(x["beta"]),
    "gated_delta": lambda x: Delta(x["beta"], x["log_decay"]),
    "diagonal_plus_rank_one": lambda x: DiagonalPlusRankOne(x["log_decay"], x["p"], x["r"]),
}
OPS = ("softmax", *TRANSITIONS)


def retention_decay(heads: int) -> Array:
    """RetNet's fixed decays ``[H]``, natural logarithms."""
    return jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float32))))


def draw(op: str, seed: int, *, batch: int, length: int, heads: int, head_dim: int) -> dict[str, np.ndarray]:
    """Inputs of an op, float32: q, k and v ``[B, T, H, K]`` and what its transition takes.

    Keys are of unit length where a delta rule would diverge otherwise; log-decays are natural, in (-0.5, 0).
    """
    rng = np.random.default_rng(seed)
    shape = (batch, length, heads, head_dim)

    def normal() -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def unit() -> np.ndarray:
        x = normal()
        return x / np.sqrt((x**2).sum(-1, keepdims=True))

    def log_decay(*sizes: int) -> np.ndarray:
        return -rng.uniform(1e-3, 0.5, size=sizes).astype(np.float32)

    if op == "softmax":
        return {"q": normal(), "k": normal(), "v": normal()}
    found = {"q": normal() * np.float32(head_dim**-0.5), "k": unit(), "v": normal()}
    if op in ("scalar", "gated_delta"):
        found["log_decay"] = log_decay(*shape[:3])
    if op in ("diagonal", "diagonal_plus_rank_one"):
        found["log_decay"] = log_decay(*shape)
    if op in ("delta", "gated_delta"):
        found["beta"] = rng.uniform(0.05, 0.95, size=shape[:3]).astype(np.float32)
    if op == "diagonal_plus_rank_one":  # RWKV-7's: what stands at a key is read and written back in part
        found["r"] = unit()
        found["p"] = -found["r"] * rng.uniform(0.05, 0.95, size=(*shape[:3], 1)).astype(np.float32)
    return found


def ours(op: str) -> Callable[[Mapping[str, Array]], Array]:
    """The op as a function of its inputs: ``o [B, T, H, V]``.

    Raises:
      ValueError: there is no such op.
    """
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    if op == "softmax":
        return lambda x: softmax_attention(x["q"], x["k"], x["v"])
    transition = TRANSITIONS[op]
    return lambda x: linear_recurrence(x["q"], x["k"], x["v"], transition=transition(x))[0]


def reference(op: str, inputs: Inputs, cotangent: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Our outputs ``o``, and the gradients of ``sum(o * cotangent)`` under the names of the inputs; float32."""
    run = ours(op)

    @jax.jit
    def both(inputs: Mapping[str, Array], cotangent: Array) -> tuple[Array, Mapping[str, Array]]:
        o, pull = jax.vjp(run, inputs)
        return o, pull(cotangent.astype(o.dtype))[0]

    o, gradients = both(cast(inputs, dtype), cotangent)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), {"o": o, **gradients})


def cast(inputs: Inputs, dtype: str) -> dict[str, Array]:
    """Inputs as arrays of jax; gates stay in float32, as they do in every code compared."""
    return {name: jnp.asarray(x, jnp.float32 if name in GATES else jnp.dtype(dtype)) for name, x in inputs.items()}


GATES = {"log_decay", "beta"}
