"""Decoding speed with a context already read, each architecture at its best.

Unrolled layers, donated states, one loop.
"""

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.bench.program import filled
from effarch.models.lm import LM, LMState
from effarch.typing import Array, PyTree


def filled_state(lm: LM, batch_size: int, context: int, left: int) -> LMState:
    """A state with ``context - left`` tokens read, its values random: speed does not depend on them."""
    return filled(jax.random.key(0), lambda: lm.init_state(batch_size, context), context - left)


def greedy(lm: LM, count: int, token: Array, state: LMState) -> tuple[Array, LMState]:
    """The last of ``count`` tokens, each the likeliest after those before it, and the state then: one loop."""

    def step(_: int, carry: tuple[Array, LMState]) -> tuple[Array, LMState]:
        token, state = carry
        output = lm.hidden(token[:, None], state, form="recurrent")
        token = jnp.argmax(lm.head(output.hidden[:, 0]), axis=-1).astype(jnp.int32)
        return token, cast(LMState, output.state)  # a state went in, so one comes out

    return jax.lax.fori_loop(0, count, step, (token, state))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _decode(graph: nnx.GraphDef, count: int, params: PyTree, state: LMState, token: Array) -> tuple[Array, LMState]:
    return greedy(nnx.merge(graph, params), count, token, state)


def decode_speeds(
    lm: LM, contexts: Sequence[int], *, batch_size: int = 1, tokens: int = 64, repeats: int = 7
) -> dict[int, float]:
    """Tokens per second of greedy decoding, all rows together, for each context.

    The median of ``repeats`` runs after a warm-up; the contexts take turns, so that a slow moment of the machine does
    not fall on one of them alone.

    Args:
      lm: the model. contexts: tokens of context at the end of a run, and the length of KV caches.
      batch_size: rows. tokens: decoded per run. repeats: runs.

    Raises:
      ValueError: a context is not longer than a run.
    """
    if min(contexts) <= tokens:
        raise ValueError(f"contexts: expected more than the {tokens} tokens of a run, got {min(contexts)}")
    graph, params = nnx.split(jax.jit(lambda m: m.unstacked())(lm))
    token = jnp.zeros((batch_size,), jnp.int32)
    seconds: dict[int, list[float]] = {context: [] for context in contexts}
    for _ in range(repeats + 1):
        for context in contexts:
            state = jax.block_until_ready(filled_state(lm, batch_size, context, tokens))
            start = time.perf_counter()
            jax.block_until_ready(_decode(graph, tokens, params, state, token))
            seconds[context].append(time.perf_counter() - start)
    return {context: batch_size * tokens / statistics.median(runs[1:]) for context, runs in seconds.items()}
