"""The operations that peers are compared with: random inputs as numpy, and ours as a function of them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from effarch.bench import ops
from effarch.bench.ops import TRANSITIONS
from effarch.typing import Array

Inputs = Mapping[str, np.ndarray]

OPS = ("softmax", *TRANSITIONS)


def draw(op: str, seed: int, *, batch: int, length: int, heads: int, head_dim: int) -> dict[str, np.ndarray]:
    """Inputs of an op, float32, as :func:`effarch.bench.ops.draw` draws them."""
    sizes = {"batch": batch, "length": length, "heads": heads, "head_dim": head_dim}
    drawn = jax.jit(lambda key: ops.draw(op, key, dtype=jnp.float32, **sizes))(jax.random.key(seed))
    return {name: np.array(x) for name, x in drawn.items()}  # copies, which torch may write to


def ours(op: str) -> Callable[[Mapping[str, Array]], Array]:
    """The op as a function of its inputs: ``o [B, T, H, V]``.

    Raises:
      ValueError: there is no such op.
    """
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    return ops.OPS[op].forward


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
