"""The checked and masked arguments of one recurrence, in the form that every implementation takes."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from effarch.ops.precision import accumulator
from effarch.ops.recurrence.transitions import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, Transition
from effarch.ops.segments import Segments
from effarch.typing import Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q", "k", "v", "log_decay", "beta", "p", "r", "run", "carried"],
    meta_fields=["kind"],
)
@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments of a recurrence; padding has k = 0, log-decay 0 and so on, so that it is the identity.

    Attributes:
      q, k, v: ``[B, T, Hq, K]``, ``[B, T, Hk, K]``, ``[B, T, H, V]``.
      log_decay: ``[H]`` (constant), ``[B, T, H]`` (per head) or ``[B, T, Hg, K]`` (per channel), accumulator's dtype.
      beta: ``[B, T, H]``, delta only. p, r: ``[B, T, H*, K]``, diagonal plus rank one only.
      run, carried: ``[B, T]`` run of the token, and of the state it finds; None without segments.
      kind: "decay", "delta" or "rank_one".
    """

    q: Array
    k: Array
    v: Array
    log_decay: Array
    beta: Array | None
    p: Array | None
    r: Array | None
    run: Array | None
    carried: Array | None
    kind: str

    @property
    def groups(self) -> tuple[int, int]:
        """(G, R): groups of heads that share q and k, and the heads in each."""
        shared = [self.q.shape[2], self.k.shape[2]] + [x.shape[2] for x in (self.p, self.r) if x is not None]
        count = math.lcm(*shared)
        return count, self.v.shape[2] // count

    def by_token(self) -> dict[str, Array]:
        """The arrays that have a time axis (axis 1), by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "kind"}
        return {name: x for name, x in named.items() if x is not None and x.ndim > 1}

    @property
    def state_dtype(self) -> jnp.dtype:
        """Accumulator's dtype: promote(float32, inputs)."""
        return accumulator(self.q, self.k, self.v)


def group(x: Array, groups: tuple[int, int], axis: int) -> Array:
    """Splits an axis of heads into (G, R), or (G, 1) where the heads are shared by the group."""
    count, each = groups
    heads = x.shape[axis]
    if heads == count * each:
        shape = (count, each)
    else:
        if heads != count:  # fewer than the groups: repeated inside a chunk only
            x = jnp.repeat(x, count // heads, axis=axis)
        shape = (count, 1)
    return x.reshape(x.shape[:axis] + shape + x.shape[axis + 1 :])


def _check_heads(name: str, x: Array, heads: int) -> None:
    if heads % x.shape[2]:
        raise ValueError(f"{name}: expected a number of heads that divides the {heads} of v, got {x.shape[2]}")


def _check_shape(name: str, x: Array, expected: tuple[int | None, ...], letters: str) -> None:
    if x.ndim != len(expected) or any(e is not None and e != got for e, got in zip(expected, x.shape, strict=False)):
        raise ValueError(
            f"{name}: expected shape {letters} = {list(expected)}, got {list(x.shape)}".replace("None", ".")
        )


def _check_decay(log_decay: Array) -> None:
    if isinstance(log_decay, Tracer):
        return
    # In numpy: what is concrete stays so under a trace.
    largest = np.max(np.asarray(log_decay, np.float64), initial=0.0)
    if largest > 0:
        raise ValueError(f"log_decay: expected natural logarithms <= 0, got {largest:g}")


def prepare(
    q: Array, k: Array, v: Array, transition: Transition, segments: Segments | None, state: Array | None
) -> Inputs:
    """Checks shapes and (outside jit) the sign of decays, promotes the decays, masks padding.

    Raises:
      ValueError: a shape, a head count, or a positive log-decay; names the field.
    """
    _check_shape("v", v, (None,) * 4, "[B, T, H, V]")
    batch, time, heads, width_v = v.shape
    width = k.shape[-1]
    _check_shape("k", k, (batch, time, None, None), "[B, T, Hk, K]")
    _check_shape("q", q, (batch, time, None, width), "[B, T, Hq, K]")
    _check_heads("q", q, heads)
    _check_heads("k", k, heads)
    if state is not None:
        _check_shape("state", state, (batch, heads, width, width_v), "[B, H, K, V]")
    if segments is not None:
        _check_shape("segment_ids", segments.run, (batch, time), "[B, T]")

    beta = p = r = None
    kind = "decay"
    per_head, per_channel = (batch, time, heads), (batch, time, None, width)
    match transition:
        case Constant(log_decay):
            _check_shape("transition.log_decay", log_decay, (heads,), "[H]")
        case Scalar(log_decay):
            _check_shape("transition.log_decay", log_decay, per_head, "[B, T, H]")
        case Diagonal(log_decay):
            _check_shape("transition.log_decay", log_decay, per_channel, "[B, T, Hg, K]")
        case Delta(beta, log_decay):
            kind = "delta"
            _check_shape("transition.beta", beta, per_head, "[B, T, H]")
            if log_decay is None:
                log_decay = jnp.zeros((heads,), jnp.float32)
            elif log_decay.ndim == 3:
                _check_shape("transition.log_decay", log_decay, per_head, "[B, T, H]")
            else:
                _check_shape("transition.log_decay", log_decay, per_channel, "[B, T, Hg, K]")
        case DiagonalPlusRankOne(log_decay, p, r):
            kind = "rank_one"
            for name, x in (("log_decay", log_decay), ("p", p), ("r", r)):
                _check_shape(f"transition.{name}", x, per_channel, "[B, T, H*, K]")
                _check_heads(f"transition.{name}", x, heads)
        case _:
            raise ValueError(
                "transition: expected Constant, Scalar, Diagonal, Delta or DiagonalPlusRankOne, "
                f"got {type(transition).__name__}"
            )
    if log_decay.ndim == 4:
        _check_heads("transition.log_decay", log_decay, heads)
    _check_decay(log_decay)
    inputs = Inputs(q, k, v, log_decay, beta, p, r, None, None, kind)
    inputs = dataclasses.replace(inputs, log_decay=log_decay.astype(inputs.state_dtype))
    if segments is None:
        return inputs
    real = segments.real
    masked = {
        name: jnp.where(real.reshape(real.shape + (1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))
        for name, x in inputs.by_token().items()
    }
    return dataclasses.replace(inputs, **masked, run=segments.run, carried=segments.carried_run)
