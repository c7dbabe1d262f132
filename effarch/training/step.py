"""The pure training step, and the one ``jax.jit`` around it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from effarch import axes
from effarch.ops.precision import accumulator
from effarch.parallel import sharding
from effarch.training.state import TrainState
from effarch.typing import Array, Float, PyTree

Metrics = dict[str, Float[Array, ""]]
#: ``(params, rest, batch, rng, *frozen) -> (loss, weight, metrics)``, all three summed, not averaged, over the batch.
LossFn = Callable[..., tuple[Array, Array, Metrics]]
#: ``(state, batch, *frozen) -> (state, metrics)``; ``frozen`` is what a loss reads and no step changes: a teacher.
Step = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A loss that changes as training goes on: ``loss_fn(..., *frozen, update=u)``, u updates of the phase done."""

    loss_fn: LossFn


RESERVED = ("loss", "weight", "grad_norm", "skipped")


def _sums(
    loss_fn: LossFn, state: TrainState, batch: PyTree, rng: Array, frozen: tuple[PyTree, ...]
) -> tuple[PyTree, Metrics]:
    """Gradient of the summed loss, and every sum, at least in float32."""

    def objective(params: PyTree) -> tuple[Array, Metrics]:
        loss, weight, metrics = loss_fn(params, state.rest, batch, rng, *frozen)
        taken = sorted(set(metrics) & set(RESERVED))
        if taken:
            raise ValueError(f"metrics: expected names other than {', '.join(RESERVED)}, got {taken[0]!r}")
        sums = {"loss": loss, "weight": weight, **metrics}
        sums = {name: jnp.asarray(x, accumulator(jnp.asarray(x))) for name, x in sums.items()}
        return sums["loss"], sums

    (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    return grads, sums


def _split(x: Array, parts: int) -> Array:
    """[B, ...] -> [parts, B / parts, ...]; part i is rows i, i + parts, ...: every device splits the rows it holds."""
    if x.shape[0] % parts:
        raise ValueError(f"grad_accum: expected a divisor of the batch of {x.shape[0]} rows, got {parts}")
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return axes.constrain(x, None, "batch", *(None,) * (x.ndim - 2))


def _accumulated_sums(
    loss_fn: LossFn, state: TrainState, batch: PyTree, rng: Array, frozen: tuple[PyTree, ...], parts: int
) -> tuple[PyTree, Metrics]:
    def body(total: PyTree, part: tuple[Array, PyTree]) -> tuple[PyTree, Metrics]:
        index, rows = part
        grads, sums = _sums(loss_fn, state, rows, jax.random.fold_in(rng, index), frozen)
        return jax.tree.map(jnp.add, total, grads), sums

    rows = jax.tree.map(lambda x: _split(x, parts), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, sums = jax.lax.scan(body, zeros, (jnp.arange(parts), rows))
    return grads, jax.tree.map(lambda x: x.sum(0), sums)


def make_step(
    loss_fn: LossFn | Scheduled, tx: optax.GradientTransformation, *, grad_accum: int = 1, first: int = 0
) -> Step:
    """One update: ``step(state, batch, *frozen) -> (state, metrics)``, a pure function.

    The gradient is that of ``sum of losses / sum of weights`` over the whole batch. A batch of weight 0 (every token
    masked) has loss 0 and gradient 0: NaN and infinity under a full mask count as nothing.

    The NaN guard: when the loss or the gradient's global norm is not finite, ``params``, ``opt_state`` and ``rest``
    come back bit for bit; ``step`` still advances (the batch is spent), ``skipped`` counts.

    The metrics: ``loss`` and every metric of ``loss_fn``, each divided by the batch's weight; ``weight`` itself, the
    sum; ``grad_norm``, the global norm before clipping; ``skipped``, 1 when the guard stepped in and else 0.

    Args:
      loss_fn: ``(params, rest, batch, rng, *frozen) -> (loss, weight, metrics)`` with sums over the rows it is given
        (the loss summed over tokens, the number of tokens, correct answers), so that micro-batches add up exactly to
        the batch.
      tx: the optimizer.
      grad_accum: micro-batches; divides the rows of the batch. Each has its own key,
        ``fold_in(fold_in(rng, step), index)``; with one micro-batch the key is ``fold_in(rng, step)``.
      first: step at which the phase begins: a :class:`Scheduled` loss is told ``step - first``.

    Raises:
      ValueError: ``grad_accum`` is not positive, or (at trace time) does not divide the rows; a metric takes a reserved
        name.
    """
    if grad_accum < 1:
        raise ValueError(f"grad_accum: expected a positive number of micro-batches, got {grad_accum}")

    def step(state: TrainState, batch: PyTree, *frozen: PyTree) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        scheduled = isinstance(loss_fn, Scheduled)
        loss = partial(loss_fn.loss_fn, update=state.step - first) if scheduled else loss_fn
        if grad_accum == 1:
            grads, sums = _sums(loss, state, batch, rng, frozen)
        else:
            grads, sums = _accumulated_sums(loss, state, batch, rng, frozen, grad_accum)

        weight = sums.pop("weight")
        some = weight != 0  # true for NaN, which must reach the guard
        divisor = jnp.where(some, weight, jnp.ones_like(weight))

        def mean(x: Array) -> Array:
            return jnp.where(some, x / divisor.astype(x.dtype), jnp.zeros_like(x))

        grads = jax.tree.map(mean, grads)
        metrics = {name: mean(x) for name, x in sums.items()}
        norm = optax.tree.norm(grads)
        ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, (state.params, state.opt_state))
        bad = jnp.logical_not(ok)
        after = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + bad.astype(jnp.int32),
        )
        return after, {**metrics, "weight": weight, "grad_norm": norm, "skipped": bad.astype(jnp.float32)}

    return step


def jit_step(
    step: Step, shardings: TrainState, rules: axes.Rules, frozen: tuple[PyTree, ...] = ()
) -> Callable[..., Any]:
    """The one compiled step: explicit shardings, the state donated, the rules in force while it is traced.

    Args:
      step: from :func:`make_step`.
      shardings: of the state, from :func:`effarch.training.state.state_shardings`.
      rules: the rules table and its mesh; dimension 0 of every array of a batch is split over "batch".
      frozen: the arrays that the step takes after the batch, where they lie already.
    """

    def traced(state: TrainState, batch: PyTree, *frozen: PyTree) -> tuple[TrainState, Metrics]:
        with axes.rules(rules):
            return step(state, batch, *frozen)

    held = jax.tree.map(lambda x: x.sharding, frozen)
    return jax.jit(
        traced,
        in_shardings=(shardings, sharding.batch_sharding(rules), *held),
        out_shardings=(shardings, sharding.replicated(rules)),
        donate_argnums=0,
    )
