"""Generation: prefill, then one compiled loop of single tokens with constant memory.

Prompts may have different lengths. The loop unrolls the layers, which is fastest per token and takes long to compile:
on one CPU core 2 s for 2 layers and 19 s for 24 (gated_deltanet; softmax attention: 2 s and 10 s), prefill as much
again.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx

from effarch.config import Config
from effarch.models.lm import LM
from effarch.ops.precision import accumulator
from effarch.typing import Array, Float, Int, PyTree


class Sampling(Config):
    """How the next token is chosen; temperature 0 is greedy."""

    temperature: float = pydantic.Field(1.0, ge=0, description="divides the logits; 0 takes the most likely token")
    top_k: int | None = pydantic.Field(None, gt=0, description="keep the k most likely tokens; null: all")
    top_p: float | None = pydantic.Field(
        None, gt=0, le=1, description="keep the likeliest tokens of this mass; null: all"
    )


def sample(logits: Float[Array, "B vocab"], rng: Array, sampling: Sampling) -> Int[Array, " B"]:
    """Draws a token per row: temperature first, then top-k, then top-p, as most libraries order them."""
    logits = logits.astype(accumulator(logits))
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    never = jnp.asarray(-jnp.inf, logits.dtype)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < smallest, never, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        kept = jnp.pad(mass[:, :-1], ((0, 0), (1, 0))) < sampling.top_p  # the first is always kept
        smallest = jnp.where(kept, ordered, -never).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, never, logits)
    return jax.random.categorical(rng, logits, axis=-1).astype(jnp.int32)


def continuation(
    lm: LM,
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    *,
    new: int,
    sampling: Sampling,
    stop: Sequence[int] = (),
    rng: Array,
) -> tuple[Int[Array, "B new"], Int[Array, " B"]]:
    """What a model writes after each row, and how many tokens before one of ``stop``; traceable.

    Args:
      lm: the model. tokens: the prompts, padded on the right. segment_ids: their documents, 0 is padding; the last
        document of each goes on.
      new: tokens to write at most. sampling: how to choose. stop: ids that end a row. rng: of the draws.
    """
    lm = lm.unstacked()
    batch, time = tokens.shape
    prompt = lm.hidden(tokens, lm.init_state(batch, time + new), segment_ids=segment_ids)
    last = (segment_ids > 0).sum(axis=1, dtype=jnp.int32) - 1
    hidden = jnp.take_along_axis(prompt.hidden, last[:, None, None], axis=1)[:, 0]
    ends = jnp.asarray(stop, jnp.int32)

    def unfinished(carry: tuple) -> Array:
        step, *_, done = carry
        return (step < new) & ~done.all()

    def advance(carry: tuple) -> tuple:
        step, hidden, state, out, length, done = carry
        token = sample(lm.head(hidden), jax.random.fold_in(rng, step), sampling)
        done = done | (token[:, None] == ends[None]).any(axis=1)
        out = out.at[:, step].set(token)
        length = jnp.where(done, length, step + 1)
        # A finished row goes on computing what nobody reads: its state is its own.
        output = lm.hidden(token[:, None], state, form="recurrent")
        return step + 1, output.hidden[:, 0], output.state, out, length, done

    out = jnp.zeros((batch, new), jnp.int32)
    start = (0, hidden, prompt.state, out, jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), bool))
    *_, out, length, _ = jax.lax.while_loop(unfinished, advance, start)
    return out, length


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What the compiled loop is specialised on."""

    new: int
    sampling: Sampling
    stop: tuple[int, ...]


@partial(jax.jit, static_argnums=(0, 1))
def _generate(
    graph: nnx.GraphDef, loop: _Loop, params: PyTree, tokens: Array, segment_ids: Array, rng: Array
) -> tuple[Array, Array]:
    lm: LM = nnx.merge(graph, params)
    options = {"new": loop.new, "sampling": loop.sampling, "stop": loop.stop}
    return continuation(lm, tokens, segment_ids, **options, rng=rng)


def generate(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int = 0,
) -> list[list[int]]:
    """Continues each prompt; the stop token itself is not returned.

    Args:
      lm: the model.
      prompts: token ids, lengths may differ, none empty.
      max_new_tokens: tokens to add at most.
      sampling: how to choose; default :class:`Sampling`.
      stop_tokens: ids that end a row.
      seed: of the draws; the same for every batch composition of one row only when greedy.

    Returns:
      New tokens of each row.

    Raises:
      ValueError: no prompts, an empty prompt, an id outside the vocabulary, ``max_new_tokens`` < 1.
    """
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError(f"prompts: expected at least one, none empty, got lengths {[len(p) for p in prompts]}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    vocab = lm.config.vocab_size
    if bad := [i for ids in (*prompts, stop_tokens) for i in ids if not 0 <= i < vocab]:
        raise ValueError(f"prompts: expected ids below vocab_size {vocab}, got {bad[0]}")
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), np.int32)
    segments = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        segments[row, : len(prompt)] = 1
    graph, params = nnx.split(lm)
    loop = _Loop(max_new_tokens, sampling or Sampling(), tuple(stop_tokens))
    out, length = _generate(graph, loop, params, jnp.asarray(tokens), jnp.asarray(segments), jax.random.key(seed))
    return [[int(i) for i in row[:n]] for row, n in zip(np.asarray(out), np.asarray(length), strict=True)]
