"""How time and memory of a mixer grow with T: forward and backward, compiled once per length, the exponent fitted."""

import dataclasses
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, MixerConfig
from effarch.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What one mixer took at several lengths, forward and backward.

    Attributes:
      lengths: T. seconds: wall time of each, the least of the repeats.
      temporaries: bytes that the compiled program needs beside arguments and results, for each length.
    """

    lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    temporaries: tuple[int, ...]

    @property
    def time_exponent(self) -> float:
        """``e`` of the fit ``seconds ~ T^e``."""
        return exponent(self.lengths, self.seconds)

    @property
    def memory_exponent(self) -> float:
        """``e`` of the fit ``temporaries ~ T^e``."""
        return exponent(self.lengths, self.temporaries)

    @property
    def bytes_per_token(self) -> float:
        """Temporaries per token at the largest length."""
        return self.temporaries[-1] / self.lengths[-1]


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """Slope of log(values) over log(lengths), by least squares."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def measure(config: MixerConfig, dim: int, lengths: Sequence[int], *, batch_size: int = 1, repeats: int = 3) -> Scaling:
    """Time and compiled memory of the gradient of a mixer's outputs for parameters and inputs.

    The lengths take turns, so that a slow moment of the machine does not fall on one of them alone.

    Args:
      config: the mixer. dim: width of its input. lengths: T of each measurement, ascending.
      batch_size: rows. repeats: runs of each length after one to warm up.

    Raises:
      ValueError: the mixer's length is fixed, or there are fewer than two lengths.
    """
    if config.fixed_length:
        raise ValueError(f"mixers: expected a mixer for any length, got {config.type_name}, whose length is fixed")
    if len(lengths) < 2:
        raise ValueError(f"lengths: expected at least two, got {list(lengths)}")

    @jax.jit
    def make() -> PyTree:
        return nnx.split(config.make(dim, layer=LayerInfo(), rngs=nnx.Rngs(0)), nnx.Param, ...)[1:]

    graph = nnx.split(jax.eval_shape(lambda: config.make(dim, layer=LayerInfo(), rngs=nnx.Rngs(0))), nnx.Param, ...)[0]
    params, rest = make()

    def loss(params: PyTree, x: Array) -> Array:
        ctx, _ = Context.of(*x.shape[:2])
        y, _, _ = nnx.merge(graph, params, rest)(x, None, ctx)
        return (y.astype(jnp.float32) ** 2).mean()

    programs, inputs = [], []
    for length in lengths:
        inputs.append(jax.random.normal(jax.random.key(length), (batch_size, length, dim)))
        programs.append(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, inputs[-1]).compile())
    seconds = [math.inf] * len(lengths)
    for turn in range(repeats + 1):
        for i, (program, x) in enumerate(zip(programs, inputs, strict=True)):
            start = time.perf_counter()
            jax.block_until_ready(program(params, x))
            if turn:
                seconds[i] = min(seconds[i], time.perf_counter() - start)
    temporaries = tuple(int(program.memory_analysis().temp_size_in_bytes) for program in programs)
    return Scaling(tuple(lengths), tuple(seconds), temporaries)
