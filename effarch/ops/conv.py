"""What looks a few tokens back: the short causal convolution and the token shift.

Both see the last real tokens of the same document only: padding is skipped, a new document starts from zeros, and
what the next call needs is carried in a state of the last real tokens. Under rules that split "time" over a mesh axis
that state is also what devices exchange.
"""

from collections.abc import Callable, Iterable

import jax.numpy as jnp

from effarch import axes
from effarch.ops.apart import apart
from effarch.ops.channels import over_tokens
from effarch.ops.segments import Segments, as_segments, compact, compacted, spread
from effarch.ops.tail import Tail, tail_from, with_tails
from effarch.typing import Array, Float, Int


def _looking_back(
    run: Callable[[Array, Array, Segments | None], tuple[Array, Array]],
    x: Array,
    reach: int,
    state: Array | None,
    segment_ids: Array | Segments | None,
) -> tuple[Array, Array]:
    """``run(x, state, segments)``, of each device's own tokens where they are split over devices."""
    segments = as_segments(segment_ids)
    batch, time, width = x.shape
    if state is None:
        state = jnp.zeros((batch, reach, width), x.dtype)
    if state.shape != (batch, reach, width):
        raise ValueError(f"state: expected shape [B, W - 1, D] = {[batch, reach, width]}, got {list(state.shape)}")
    state, split = state.astype(x.dtype), axes.context_parallel(time)
    if split is None or reach == 0:
        return run(x, state, segments)

    def shard(x: Array, segments: Segments | None, tail: Tail) -> tuple[Array, Array]:
        return run(x, tail.last, segments)

    mesh, axis = split
    return with_tails(shard, x, tail_from(state), segments, last=lambda x: x, mesh=mesh, axis=axis)


def _lookback(
    x: Array, reach: int, state: Array, segments: Segments | None, agos: Iterable[int] | None = None
) -> tuple[list[Array], Array, Segments | None]:
    """``x`` as 0, 1, ..., ``reach`` tokens ago (or ``agos``), the next state, segments to :func:`spread` it with."""
    agos = range(reach + 1) if agos is None else agos
    time, x = x.shape[1], apart(x)
    if segments is None:
        line = jnp.concatenate([state, x], axis=1)
        return [line[:, reach - ago : reach - ago + time] for ago in agos], line[:, time:], None
    moved = time > 1  # a single token has nowhere to move
    inner = compacted(segments) if moved else segments
    x = jnp.where(inner.real[..., None], compact(x, segments) if moved else x, jnp.zeros((), x.dtype))
    line = jnp.concatenate([state, x], axis=1)
    run = jnp.pad(inner.run, ((0, 0), (reach, 0)), constant_values=1)  # the state belongs to run 1
    views = []
    for ago in agos:
        window = slice(reach - ago, reach - ago + time)
        same = run[:, window] == inner.run
        views.append(jnp.where(same[..., None], line[:, window], jnp.zeros((), x.dtype)))
    real = inner.real.sum(axis=1, dtype=jnp.int32)
    last = real[:, None] + jnp.arange(reach, dtype=jnp.int32)[None]
    kept = jnp.take_along_axis(run, last, axis=1) == segments.last_run[:, None]
    state = jnp.where(kept[..., None], jnp.take_along_axis(line, last[..., None], axis=1), jnp.zeros((), x.dtype))
    return views, state, segments if moved else None


def causal_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, " D"] | None = None,
    *,
    state: Float[Array, "B W-1 D"] | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
    """Depthwise causal convolution ``y_t = sum_w weight[W - 1 - w] x_{t-w} + bias``; the last tap is ``x_t``.

    Args:
      x: inputs. weight: one filter per channel. bias: optional.
      state: the last W - 1 real inputs before this call, oldest first; zeros if None. It belongs to run 1.
      segment_ids: documents; 0 is padding and the identity, its output is 0.

    Returns:
      Outputs in x's dtype, and the last W - 1 real inputs of the row's last document.
    """

    def convolve(x: Array, state: Array, segments: Segments | None) -> tuple[Array, Array]:
        views, state, moved = _lookback(x, taps - 1, state, segments)
        taken = (view * over_tokens(weight[taps - 1 - ago], view) for ago, view in enumerate(views))
        y = sum(taken, start=jnp.zeros((), x.dtype))
        if bias is not None:
            y = y + over_tokens(bias, y)
        y = y if moved is None else spread(y, moved)
        if segments is not None and bias is not None:
            y = jnp.where(segments.real[..., None], y, jnp.zeros((), y.dtype))
        return y, state

    taps = weight.shape[0]
    return _looking_back(convolve, x, taps - 1, state, segment_ids)


def token_shift(
    x: Float[Array, "B T D"],
    *,
    state: Float[Array, "B D"] | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """``x_{t-1}``: the real token before t in its document, zeros at its start. Returns also the next state.

    Args:
      x: inputs.
      state: the last real input before this call; zeros if None. It belongs to run 1.
      segment_ids: documents; 0 is padding.
    """

    def shift(x: Array, state: Array, segments: Segments | None) -> tuple[Array, Array]:
        views, last, moved = _lookback(x, 1, state, segments)
        return views[1] if moved is None else spread(views[1], moved), last

    previous, last = _looking_back(shift, x, 1, None if state is None else state[:, None], segment_ids)
    return previous, last[:, 0]


def delay(
    x: Float[Array, "B T D"],
    tokens: int,
    *,
    state: Float[Array, "B tokens D"] | None = None,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
) -> Float[Array, "B T D"]:
    """``x_{t-tokens}``: the real token so many before t in its document, zeros where there is none.

    Args:
      x: inputs.
      state: the last ``tokens`` real inputs before this call, oldest first; zeros if None. It belongs to run 1.
      segment_ids: documents; 0 is padding.
    """

    def shift(x: Array, state: Array, segments: Segments | None) -> tuple[Array, Array]:
        (view,), last, moved = _lookback(x, tokens, state, segments, (tokens,))
        return view if moved is None else spread(view, moved), last

    return _looking_back(shift, x, tokens, state, segment_ids)[0]
