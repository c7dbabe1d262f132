"""One mixer, made tiny, its parameters drawn at random, and its pure function compiled once per form."""

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import effarch.mixers  # noqa: F401  (registers)
from effarch import axes, registry
from effarch.mixers import Context, LayerInfo, MixerConfig
from tests.ops.recurrence_cases import random_segments

MIXERS = registry.names("mixer")
CHANNELS = registry.names("channel")
ALL = [("mixer", name) for name in MIXERS] + [("channel", name) for name in CHANNELS]
T = 72  # more than one chunk (32 for small heads), and not a multiple
HALF = 36  # tokens of a piece: also more than one chunk


@dataclasses.dataclass(frozen=True)
class Subject:
    """A registered mixer under test."""

    kind: str
    name: str
    config: MixerConfig
    dim: int
    graph: Any

    @classmethod
    @lru_cache
    def of(cls, kind: str, name: str) -> "Subject":
        config, dim = registry.get(kind, name).tiny()
        graph, _ = nnx.split(jax.eval_shape(partial(_module, config, dim)))
        return cls(kind, name, config, dim, graph)

    def parameters(self, dtype=jnp.float32):
        """Initial values plus noise; what is fixed (no ``nnx.Param``) stays as it is made.

        Zeros at the start (an output projection, a gate) would hide what stands behind.
        """
        return _noisy_as(self.config, self.dim, jnp.dtype(dtype))

    def needs(self, **flags: Any) -> None:
        """Skips, naming the flag, where the config rules the property out."""
        for flag, wanted in flags.items():
            if getattr(self.config, flag) != wanted:
                pytest.skip(f"{self.name}: {flag} is {getattr(self.config, flag)}")

    def needs_form(self, form: str) -> None:
        """Skips where the mixer has no such form."""
        if form not in self.config.forms:
            pytest.skip(f"{self.name}: forms are {', '.join(self.config.forms)}")

    @property
    def time(self) -> int:
        """Tokens of a row: what the parameters fix, or T."""
        return self.config.length if self.config.fixed_length else T

    def input(self, seed: int = 0, dtype=jnp.float32, batch: int = 2, time: int | None = None):
        """A random ``[B, T, D]`` of numpy, as everything outside of jit: each eager operation would be compiled."""
        return np.random.default_rng(seed).normal(size=(batch, time or self.time, self.dim)).astype(dtype)

    def documents(self, seed: int, batch: int = 2):
        """Random documents and padding anywhere; None where the mixer takes whole rows only."""
        return random_segments(np.random.default_rng(seed), batch, self.time) if self.config.packed else None

    def one_document(self, batch: int = 2, time: int | None = None):
        """Rows of one document, for tests that share the programs of packed rows; None as above."""
        return np.full((batch, time or self.time), 3, np.int32) if self.config.packed else None

    def run(self, x, *, parameters=None, state=None, progress=None, segment_ids=None, form="chunkwise", table=None):
        """``(y, state, progress)`` of the module."""
        parameters = self.parameters(x.dtype) if parameters is None else parameters
        return _run(self.graph, form, table, parameters, x, state, progress, _strong(segment_ids))

    def gradients(self, x, *, parameters=None, segment_ids=None, form="chunkwise", table=None, cotangent=None):
        """``y`` and the gradients of ``sum(y * cotangent)`` for every ``nnx.Param`` and x; numpy."""
        parameters = self.parameters(x.dtype) if parameters is None else parameters
        if cotangent is None:
            cotangent = self.input(seed=99, dtype=x.dtype)
        found = _gradients(self.graph, form, table, parameters, x, _strong(segment_ids), cotangent)
        return jax.tree.map(np.asarray, found)

    def init_state(self, batch: int, length: int, dtype=jnp.float32):
        """The state before any token, in the precision of ``dtype``."""
        return _as_floats(_init_state(self.graph, batch, length, self.parameters()), dtype)


def _module(config, dim):
    return config.make(dim, layer=LayerInfo(count=2), rngs=nnx.Rngs(0))


def _as_floats(tree, dtype):
    return jax.tree.map(lambda x: np.asarray(x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype), tree)


@lru_cache
def _noisy_as(config, dim, dtype):
    return _as_floats(_noisy(config, dim), dtype)


@lru_cache
def _noisy(config, dim):
    with jax.enable_x64(False):  # the same for every precision
        made = jax.jit(lambda: nnx.split(_module(config, dim), nnx.Param, ...)[1:])()
    params, fixed = jax.tree.map(np.asarray, made)
    rng = np.random.default_rng(2)  # of a draw where no head all but vanishes before its norm, for float32's sake
    noisy = jax.tree.map(lambda x: x + (0.15 * rng.normal(size=x.shape)).astype(x.dtype), params)
    return nnx.merge_state(noisy, fixed)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _init_state(graph, batch, length, parameters):
    return nnx.merge(graph, parameters).init_state(batch, length)


def _strong(ids):
    """Of one dtype, so that it does not compile anew."""
    return None if ids is None else np.asarray(ids, np.int32)


def forward(graph, form, table, parameters, x, state, progress, segment_ids):
    with axes.rules(table):
        ctx, after = Context.of(*x.shape[:2], segment_ids=segment_ids, progress=progress, form=form)
        y, state, _ = nnx.merge(graph, parameters)(x, state, ctx)
        return y, state, after


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(graph, form, table, parameters, x, state, progress, segment_ids):
    return forward(graph, form, table, parameters, x, state, progress, segment_ids)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradients(graph, form, table, parameters, x, segment_ids, cotangent):
    trained, fixed = nnx.split_state(parameters, nnx.Param, ...)

    def loss(trained, x):
        y = forward(graph, form, table, nnx.merge_state(trained, fixed), x, None, None, segment_ids)[0]
        return (y * cotangent).sum(), y

    (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(trained, x)
    return y, gradients
