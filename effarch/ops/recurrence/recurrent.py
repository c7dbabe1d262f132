"""The recurrent form: one token after the other, O(1) state. What decoding runs."""

import jax
import jax.numpy as jnp

from effarch.ops.recurrence.inputs import Inputs, group
from effarch.typing import Array, Float


def _read(state: Array, x: Array) -> Array:
    """``S^T x``: ``[B, G, R, K, V], [B, G, 1 or R, K] -> [B, G, R, V]``."""
    # Summed with three dims: XLA on CPU takes forty times as long to sum an array of five.
    terms = (state * x[..., None]).reshape(-1, *state.shape[-2:])
    return terms.sum(axis=1).reshape(*state.shape[:-2], state.shape[-1])


def _step(state: Array, x: dict[str, Array], kind: str, before: bool) -> tuple[Array, Array]:
    log_decay = x["log_decay"]
    decay = jnp.exp(log_decay)[..., None]  # [.., K or 1, 1]
    q, k, v = x["q"], x["k"], x["v"]
    if kind == "delta":
        after = state * decay
        written = x["beta"][..., None] * (v - _read(after, k))
        after = after + k[..., None] * written[..., None, :]
    elif kind == "decay" and not before:
        # The token's own term as the chunk form has it: exact where it is alone, whatever cancels in q.k.
        kept = state * decay
        own = (q * k).sum(axis=-1, keepdims=True)
        return kept + k[..., None] * v[..., None, :], _read(kept, q) + own * v
    else:
        after = state * decay + k[..., None] * v[..., None, :]
        if kind == "rank_one":
            after = after + x["p"][..., None] * _read(state, x["r"])[..., None, :]
    return after, _read(state if before else after, q)


def recurrent(
    inputs: Inputs, state: Float[Array, "B H K V"], *, before: bool
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """The recurrence as a scan over time; a single token is a single step, without a loop."""
    batch, time, heads, width_v = inputs.v.shape
    groups = inputs.groups
    constant = inputs.log_decay.ndim == 1
    state = state.reshape(batch, *groups, *state.shape[2:])

    def step(carry: Array, x: dict[str, Array]) -> tuple[Array, Array]:
        run, carried = x.pop("run", None), x.pop("carried", None)
        x = {name: group(y, groups, axis=1).astype(state.dtype) for name, y in x.items()}
        if constant:
            x["log_decay"] = inputs.log_decay.reshape(1, *groups, 1)
        elif inputs.log_decay.ndim == 3:
            x["log_decay"] = x["log_decay"][..., None]
        if run is None:
            after, o = _step(carry, x, inputs.kind, before)
        else:
            real = (run > 0)[:, None, None, None]
            kept = jnp.where((real[:, 0, 0, 0] & (run != carried))[:, None, None, None, None], 0, carry)
            after, o = _step(kept, x, inputs.kind, before)
            after, o = jnp.where(real[..., None], after, carry), jnp.where(real, o, 0)
        return after, o.astype(inputs.v.dtype)

    xs = inputs.by_token()
    if time == 1:
        state, o = step(state, {name: x[:, 0] for name, x in xs.items()})
        o = o[:, None]
    else:
        state, o = jax.lax.scan(step, state, {name: jnp.moveaxis(x, 1, 0) for name, x in xs.items()})
        o = jnp.moveaxis(o, 0, 1)
    return o.reshape(batch, time, heads, width_v), state.reshape(batch, heads, *state.shape[3:])
