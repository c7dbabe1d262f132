"""On-policy distillation (generalised knowledge distillation, GKD, 2306.13649): the student learns on what it writes.

A step takes a batch of text or, with probability ``fraction``, prompts from it and lets the student continue them;
then the distributions of teacher and student over the next token are compared at every token the student wrote, the
one that ends a text included. The samples are constants: no gradient flows through the sampling (the paper's
algorithm 1).

What is drawn depends on the step's key alone, that is on the run's seed and the step: a run that is continued draws
the same.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.models.generate import Sampling, continuation
from effarch.models.lm import LM
from effarch.training.step import LossFn
from effarch.typing import Array, PyTree


def written(
    lm: LM, batch: dict[str, Array], rng: Array, *, prompt: float, sampling: Sampling, end_token: int | None = None
) -> dict[str, Array]:
    """The batch with the first part of its rows continued by a model; what it wrote is what counts as targets.

    The continuation belongs to the last document of the prompt. A row whose prompt has no text, or whose last document
    ends there, counts nothing.

    Args:
      lm: who writes. batch: ``tokens``, ``segment_ids`` and ``loss_mask``, ``[B, T]``. rng: of the draws.
      prompt: share of a row that is given, in (0, 1). sampling: how tokens are drawn. end_token: ends a text.
    """
    time = batch["tokens"].shape[1]
    given = min(max(round(prompt * time), 1), time - 1)
    tokens, segments = batch["tokens"][:, :given], batch["segment_ids"][:, :given]
    stop = () if end_token is None else (end_token,)
    new, length = continuation(lm, tokens, segments, new=time - given, sampling=sampling, stop=stop, rng=rng)
    # The token that ends the text counts, what comes after it is padding.
    counts = jnp.arange(time - given)[None] <= length[:, None]
    size = (segments > 0).sum(axis=1, keepdims=True)
    document, before = (jnp.take_along_axis(x, jnp.maximum(size - 1, 0), axis=1) for x in (segments, tokens))
    counts = counts & (size > 0)
    if end_token is not None:
        counts = counts & (before != end_token)
    added = {
        "tokens": jnp.where(counts, new, 0),
        "segment_ids": jnp.where(counts, document, 0),
        "loss_mask": counts.astype(batch["loss_mask"].dtype),
    }
    kept = {"tokens": tokens, "segment_ids": segments, "loss_mask": jnp.zeros_like(batch["loss_mask"][:, :given])}
    return {name: jnp.concatenate([kept[name], added[name]], axis=1) for name in added}


def on_policy(
    graph: nnx.GraphDef,
    of_batch: LossFn,
    *,
    fraction: float,
    prompt: float,
    sampling: Sampling,
    end_token: int | None = None,
) -> LossFn:
    """``of_batch`` of text or, with probability ``fraction``, of what the student writes.

    The metric ``on_policy``, beside those of ``of_batch``, is 1 where the student wrote the batch and else 0.

    Args:
      graph: the student's. of_batch: a loss of its states and a batch. fraction: the paper's lambda, in [0, 1].
      prompt, sampling, end_token: as for :func:`written`.
    """

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, *frozen: PyTree) -> tuple:
        coin, draws, rng = jax.random.split(rng, 3)
        constant = jax.lax.stop_gradient((params, rest))
        text = {name: batch[name] for name in ("tokens", "segment_ids", "loss_mask")}

        def write() -> dict[str, Array]:
            student: LM = nnx.merge(graph, *constant)
            return written(student, text, draws, prompt=prompt, sampling=sampling, end_token=end_token)

        own = jax.random.uniform(coin) < fraction
        chosen = jax.lax.cond(own, write, lambda: text)
        total, weight, metrics = of_batch(params, rest, chosen, rng, *frozen)
        return total, weight, {**metrics, "on_policy": jnp.where(own, weight, jnp.zeros_like(weight))}

    return loss
