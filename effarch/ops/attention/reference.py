"""Softmax attention with its T x S scores in memory: readable, differentiable by hand, and the measure of the others.

    o_i = sum_j p_ij v_j / sum_j p_ij        p_ij = exp(scale * q_i . k_j)  over the keys j that query i sees

What a query sees is said once, by `Visibility`: by run and by position inside the run, never by index in memory.
So packed documents, padding, caches and chunks of a longer text are all the same case.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments, as_segments
from effarch.typing import Array, Bool, Float, Int

MASKED = -1e30  # a masked logit; finite, so that no inf - inf arises
EMPTY = -5e29  # the least running maximum: exp(MASKED - EMPTY) is exactly 0, also in rows that see nothing


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["run_q", "position_q", "run_k", "position_k"],
    meta_fields=["causal", "window"],
)
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Query i sees key j iff they are of one run (0, padding, sees and shows nothing) and j's position allows it.

    Attributes:
      run_q: ``[B, T]`` int32 run of each query; 0 is padding.
      position_q: ``[B, T]`` int32 position of each query in its run.
      run_k: ``[B, S]`` int32 run of each key.
      position_k: ``[B, S]`` int32 position of each key.
      causal: keys after the query are hidden.
      window: keys at ``position - window`` and before are hidden; None hides none.
    """

    run_q: Int[Array, "B T"]
    position_q: Int[Array, "B T"]
    run_k: Int[Array, "B S"]
    position_k: Int[Array, "B S"]
    causal: bool = True
    window: int | None = None

    def pairs(self) -> Bool[Array, "B T S"]:
        """True where query i sees key j."""
        queries, keys = (self.run_q, self.position_q), (self.run_k, self.position_k)
        (run_q, at_q), (run_k, at_k) = (x[:, :, None] for x in queries), (x[:, None, :] for x in keys)
        seen = (run_q == run_k) & (run_q > 0)
        if self.causal:
            seen &= at_k <= at_q
        if self.window is not None:
            seen &= at_k > at_q - self.window
        return seen


def contiguous(batch: int, time: int) -> Segments:
    """The segments of rows that hold one document each and no padding."""
    clock = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), (batch, time))
    ones = jnp.ones_like(clock)
    return Segments(run=ones, carried_run=ones, position=clock, order=clock, inverse=clock)


def resolve(
    q: Array, k: Array, v: Array, *, causal: bool, segment_ids: Array | Segments | None, visibility: Visibility | None
) -> Visibility:
    """Checks the shapes and gives the one visibility that the arguments ask for.

    Raises:
      ValueError: shapes or head counts disagree, or the arguments say two different things.
    """
    check_heads(q, k, v)
    (batch, time), keys = q.shape[:2], k.shape[1]
    if visibility is not None:
        if segment_ids is not None:
            raise ValueError("segment_ids: expected None beside visibility, got both")
        for name, want in (("run_q", time), ("position_q", time), ("run_k", keys), ("position_k", keys)):
            if getattr(visibility, name).shape != (batch, want):
                raise ValueError(
                    f"visibility.{name}: expected [{batch}, {want}], got {list(getattr(visibility, name).shape)}"
                )
        return visibility
    check_row(q, k, v)
    segments = row_segments(segment_ids, batch, time)
    return Visibility(segments.run, segments.position, segments.run, segments.position, causal=causal)


def row_segments(segment_ids: Array | Segments | None, batch: int, time: int) -> Segments:
    """Segments of a ``[batch, time]`` row, one document per row for None. Raises ``ValueError`` on another shape."""
    if segment_ids is None:
        return contiguous(batch, time)
    segments = as_segments(segment_ids)
    if segments.run.shape != (batch, time):
        raise ValueError(f"segment_ids: expected [{batch}, {time}], got {list(segments.run.shape)}")
    return segments


def check_row(q: Array, k: Array, v: Array) -> None:
    """`check_heads`, and raises ``ValueError`` unless there is a key for every query."""
    check_heads(q, k, v)
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"k: expected S = T = {q.shape[1]} without visibility, got S = {k.shape[1]}")


def check_heads(q: Array, k: Array, v: Array) -> None:
    """Raises ``ValueError`` unless q [B,T,Hq,D], k [B,S,Hk,D], v [B,S,Hk,V] fit together, Hq a multiple of Hk."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: expected a floating-point array [B, T, H, D], got {x.dtype}{list(x.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k: expected [{q.shape[0]}, S, Hk, {q.shape[3]}] for q {list(q.shape)}, got {list(k.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v: expected {list(k.shape[:3])} + [V] for k {list(k.shape)}, got {list(v.shape)}")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"q: expected a multiple of Hk = {k.shape[2]} heads, got Hq = {q.shape[2]}")


def dot(equation: str, x: Array, y: Array) -> Array:
    """``einsum`` that accumulates in at least float32, and multiplies float32 inputs as float32 on every device."""
    dtype = np.promote_types(x.dtype, y.dtype)
    exact = jax.lax.Precision.HIGHEST if jnp.finfo(dtype).bits >= 32 else None
    x, y, sums = x.astype(dtype), y.astype(dtype), accumulator(x, y)
    return jnp.einsum(equation, x, y, precision=exact, preferred_element_type=sums)


def capped(logits: Array, cap: float | None) -> Array:
    """``cap * tanh(logits / cap)`` (Gemma 2, 2408.00118); ``logits`` themselves for None."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def zero_padding(x: Float[Array, "B T H D"], run: Int[Array, "B T"]) -> Float[Array, "B T H D"]:
    """``x`` with padding's rows 0, whatever was there."""
    return jnp.where((run > 0)[:, :, None, None], x, 0)


def shield(k: Float[Array, "B S Hk D"], v: Float[Array, "B S Hk V"], run: Int[Array, "B S"]) -> tuple[Array, Array]:
    """Keys and values for sums over hidden keys: there a value that is not finite would cross the mask as 0 * NaN.

    Padding becomes 0. A broken value moves into its key, whose logit the mask hides from those who must not see it,
    and reaches those who see it as NaN.
    """
    k, v = zero_padding(k, run), zero_padding(v, run)
    broken = ~jnp.isfinite(v).all(axis=-1, keepdims=True)
    return jnp.where(broken, jnp.nan, k), jnp.where(broken, 0, v)


def mix(
    groups: Sequence[tuple[Array, Array, Array, Bool[Array, "B ... T S"]]],
    *,
    scale: float,
    cap: float | None = None,
    bias: Float[Array, "B Hk G T S"] | None = None,
) -> Float[Array, "B T Hq V"]:
    """One softmax over several groups of keys, each read by its own form of the query: `mix_and_logsumexp` without the
    log of its sum.
    """
    return mix_and_logsumexp(groups, scale=scale, cap=cap, bias=bias)[0]


def mix_and_logsumexp(
    groups: Sequence[tuple[Array, Array, Array, Bool[Array, "B ... T S"]]],
    *,
    scale: float,
    cap: float | None = None,
    bias: Float[Array, "B Hk G T S"] | None = None,
) -> tuple[Float[Array, "B T Hq V"], Float[Array, "B T Hq"]]:
    """One softmax over several groups of keys, each read by its own form of the query, and the log of its sum.

    Rows that see nothing have output 0 and log-sum `EMPTY`.

    Args:
      groups: ``(q [B,T,Hq,D], k [B,S,Hk,D], v [B,S,Hk,V], visible [B,T,S])`` for each group; hidden values must be
        finite, see `shield`. Where heads see different keys, ``visible`` is ``[B, Hk or 1, Hq / Hk or 1, T, S]``.
      scale: multiplies the logits.
      cap: bounds the scaled logits, see `capped`.
      bias: is added to them after that, where there is one group.
    """
    dtype = groups[0][0].dtype
    logits = []
    for q, k, _, visible in groups:
        q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
        scores = capped(dot("btkgd,bskd->bkgts", q, k) * scale, cap) + (0 if bias is None else bias)
        logits.append(jnp.where(visible[:, None, None] if visible.ndim == 3 else visible, scores, MASKED))
    peak = jnp.maximum(jnp.concatenate([x.max(axis=-1, keepdims=True) for x in logits], axis=-1).max(axis=-1), EMPTY)
    weights = [jnp.exp(x - jax.lax.stop_gradient(peak)[..., None]) for x in logits]
    total = sum(w.sum(axis=-1) for w in weights)
    read = sum(dot("bkgts,bskv->bkgtv", w.astype(v.dtype), v) for w, (_, _, v, _) in zip(weights, groups, strict=True))
    o = read / jnp.where(total > 0, total, 1)[..., None]
    batch, kv, group, time, width = o.shape
    o = o.transpose(0, 3, 1, 2, 4).reshape(batch, time, kv * group, width).astype(dtype)
    logsumexp = jax.lax.stop_gradient(peak) + jnp.log(jnp.where(total > 0, total, 1))
    return o, logsumexp.transpose(0, 3, 1, 2).reshape(batch, time, kv * group)


def merge(parts: Sequence[tuple[Float[Array, "B T Hq V"], Float[Array, "B T Hq"]]]) -> Float[Array, "B T Hq V"]:
    """One softmax over keys that were attended to in parts.

    Args:
      parts: output and log of the softmax's sum over each part; no key may be in two.
    """
    peak = jax.lax.stop_gradient(jnp.stack([logsumexp for _, logsumexp in parts]).max(axis=0))
    weights = [jnp.exp(logsumexp - peak)[..., None] for _, logsumexp in parts]
    total = jnp.stack(weights).sum(axis=0)
    o = jnp.stack([o.astype(w.dtype) * (w / total) for (o, _), w in zip(parts, weights, strict=True)]).sum(axis=0)
    return o.astype(parts[0][0].dtype)


def attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B S Hk D"],
    v: Float[Array, "B S Hk V"],
    *,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    visibility: Visibility | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "B T Hq V"]:
    """Softmax attention, O(T S) memory; softmax and sums in at least float32.

    Args:
      q: queries; Hq is a multiple of Hk, and query head h reads key head ``h // (Hq / Hk)``.
      k: keys, already rotated where positions are rotary.
      v: values.
      causal: a query sees no later position; ignored beside ``visibility``.
      segment_ids: documents of the row, 0 is padding (its output is 0); None is one document.
      visibility: instead of ``segment_ids``: who sees whom, for keys that are not the queries' own row.
      scale: multiplies the logits, default ``D ** -0.5``.
      cap: bounds the scaled logits to ``cap * tanh(logits / cap)``, > 0; None does not.

    Raises:
      ValueError: shapes or head counts disagree.
    """
    visibility = resolve(q, k, v, causal=causal, segment_ids=segment_ids, visibility=visibility)
    q, (k, v) = zero_padding(q, visibility.run_q), shield(k, v, visibility.run_k)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    o = mix([(q, k, v, visibility.pairs())], scale=scale, cap=cap)
    return zero_padding(o, visibility.run_q)  # also keeps a NaN gradient of padding out
