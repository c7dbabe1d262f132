"""What this machine can do at best, measured in the same run: matrix products and copies."""

import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from effarch.typing import Array

CEILINGS = {
    "matmul": "FLOP/s of one product of 2048 x 2048 matrices",
    "matmul_64": "FLOP/s of 256 products of 64 x 64 matrices, which stay in the cache",
    "matmul_64_streamed": "FLOP/s of 8192 such products, which come from memory",
    "copy": "bytes/s read and written by copies of 256 MiB",
}


def ceilings(dtype: str = "float32", repeats: int = 7) -> dict[str, float]:
    """The figures named in ``CEILINGS``: medians of some runs."""

    def typical(run: Callable[..., Array], *shapes: tuple[int, ...]) -> float:
        compiled = jax.jit(run)
        inputs = [((jnp.arange(math.prod(s)) % 101) / 101).astype(dtype).reshape(s) for s in shapes]
        jax.block_until_ready(compiled(*inputs))
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*inputs))
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def products(count: int, rounds: int = 1) -> float:
        def run(a: Array, b: Array) -> Array:
            return jax.lax.fori_loop(0, rounds, lambda _, x: dot(x, b), a) if rounds > 1 else dot(a, b)

        shape = (count, 64, 64)
        return 2 * count * 64**3 * rounds / typical(run, shape, shape)

    def dot(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    size, count = 2048, 2**28 // jnp.dtype(dtype).itemsize
    return {
        "matmul": 2 * size**3 / typical(dot, (size, size), (size, size)),
        "matmul_64": products(256, rounds=16),
        "matmul_64_streamed": products(8192),
        "copy": 2 * count * jnp.dtype(dtype).itemsize / typical(lambda x: -x, (count,)),
    }
