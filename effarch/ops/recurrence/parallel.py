"""The parallel form: every pair of tokens at once, O(T^2), as the papers write it. For reading and for testing."""

import jax
import jax.numpy as jnp

from effarch.ops.recurrence.inputs import Inputs
from effarch.typing import Array, Float


def _einsum(spec: str, *arrays: Array) -> Array:
    return jnp.einsum(spec, *arrays, precision=jax.lax.Precision.HIGHEST)


def _segment_sums(x: Float[Array, "... T"]) -> Float[Array, "... T T"]:
    """``y[i, j] = sum of x over j < l <= i``; 0 for j >= i."""
    after = jnp.tril(jnp.ones((x.shape[-1], x.shape[-1]), bool), -1)
    return jnp.cumsum(jnp.where(after, x[..., :, None], jnp.zeros((), x.dtype)), axis=-2)


def parallel(
    inputs: Inputs, state: Float[Array, "B H K V"], *, before: bool
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """``o_i = sum_{j <= i} q_i^T A_i ... A_{j+1} k_j v_j``, the products of A written out as T x T factors."""
    batch, time, heads, _ = inputs.v.shape
    width = inputs.k.shape[-1]

    def full(x: Array) -> Array:  # [B, T, H', K] -> [B, H, T, K]
        x = jnp.repeat(x, heads // x.shape[2], axis=2).astype(state.dtype)
        return jnp.moveaxis(x, 1, 2)

    q, k, v = full(inputs.q), full(inputs.k), full(inputs.v)
    real = jnp.ones((batch, time), bool) if inputs.run is None else inputs.run > 0
    log_decay = inputs.log_decay
    if log_decay.ndim == 1:
        log_decay = jnp.where(real[..., None], log_decay[None, None, :], 0)
    log_decay = log_decay[..., None] if log_decay.ndim == 3 else log_decay
    log_decay = jnp.broadcast_to(full(log_decay), (batch, heads, time, width))

    # A row of ones in front stands for the carried state: pair (i, 0) decays it up to i.
    padded = jnp.pad(log_decay, ((0, 0), (0, 0), (1, 0), (0, 0)))
    sums = jnp.moveaxis(_segment_sums(jnp.moveaxis(padded, 2, 3)), 2, 4)  # [B, H, 1+T, 1+T, K]
    after, previous = jnp.exp(sums[:, :, 1:]), jnp.exp(sums[:, :, :-1])  # i's own decay in, and out
    same = jnp.ones((batch, time, time), bool)
    into = out = jnp.ones((batch, time), bool)
    keep = jnp.ones((batch,), bool)
    if inputs.run is not None and inputs.carried is not None:
        run, first = inputs.run, inputs.carried[:, 0]
        last = jnp.maximum(run.max(axis=1), first)
        same = (run[:, :, None] == run[:, None, :]) & real[:, :, None]
        into, out, keep = real & (run == first[:, None]), real & (run == last[:, None]), last == first

    def pairs(x: Array, y: Array, *, factors: Array, strict: bool) -> Array:
        order = jnp.tril(jnp.ones((time, time), bool), -1 if strict else 0)
        mask = (order[None] & same)[:, None]
        return jnp.where(mask, _einsum("bhik,bhjk,bhijk->bhij", x, y, factors[..., 1:, :]), 0)

    def read(x: Array, factors: Array) -> Array:
        x = jnp.where(into[:, None, :, None], x * factors[..., 0, :], 0)
        return _einsum("bhik,bhkv->bhiv", x, state)

    def solve(lower: Array, rhs: Array) -> Array:  # (I + lower)^-1 rhs
        eye = jnp.broadcast_to(jnp.eye(time, dtype=state.dtype), lower.shape)
        return jax.scipy.linalg.solve_triangular(eye + lower, rhs, lower=True, unit_diagonal=True)

    writes = [(k, v)]  # what is written along which vector
    if inputs.beta is not None:  # "delta"
        beta = jnp.moveaxis(inputs.beta, 1, 2).astype(state.dtype)[..., None]
        gram = beta * pairs(k, k, factors=after, strict=True)
        writes = [(k, solve(gram, beta * (v - read(k, after))))]
    elif inputs.p is not None and inputs.r is not None:  # "rank_one"
        p, r = full(inputs.p), full(inputs.r)
        seen = _einsum("bhij,bhjv->bhiv", pairs(r, k, factors=previous, strict=True), v) + read(r, previous)
        writes.append((p, solve(-pairs(r, p, factors=previous, strict=True), seen)))

    factors = previous if before else after
    o = read(q, factors)
    to_end = jnp.where(out[:, None, :, None], after[:, :, -1, 1:], 0)
    final = jnp.where(keep[:, None, None, None], after[:, :, -1, 0, :, None] * state, 0)
    for vectors, values in writes:
        o = o + _einsum("bhij,bhjv->bhiv", pairs(q, vectors, factors=factors, strict=before), values)
        final = final + _einsum("bhjk,bhjv->bhkv", vectors * to_end, values)
    return jnp.moveaxis(o, 1, 2).astype(inputs.v.dtype), final
