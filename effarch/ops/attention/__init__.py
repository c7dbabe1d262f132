"""Softmax attention: one definition of who sees whom, and every form of it.

`softmax_attention` over a row, `window_attention` with sinks, and `attend` over what a cache carries. Sparse patterns
are parts that `merge` makes one softmax of, over the documents of a row laid end to end (`lay_out`): windows and pieces
of a `Line`, `strided_attention`, `selected_attention` to whole blocks. All forms of one operation are equal in value
and in gradient; none is chosen by length.
"""

from effarch import axes
from effarch.ops.attention.block_sparse import selected_attention
from effarch.ops.attention.blockwise import blockwise_attention
from effarch.ops.attention.cache import KVCache, RingCache, append, attend
from effarch.ops.attention.choice import block_means, choose_blocks, next_mean, read_slots
from effarch.ops.attention.dilated import Dilated
from effarch.ops.attention.forgetting import forgetting_attention
from effarch.ops.attention.gathered import over_gathered_keys
from effarch.ops.attention.line import Blocks, Line, lay_out
from effarch.ops.attention.reference import Visibility, attention, check_row, merge, row_segments
from effarch.ops.attention.ring import ring_attention
from effarch.ops.attention.strided import strided_attention
from effarch.ops.attention.window import LeftContext, window_attention
from effarch.ops.mixing import mixes
from effarch.ops.segments import Segments
from effarch.typing import Array, Float, Int

FORMS = {"chunkwise": blockwise_attention, "parallel": attention}


@mixes(weights=True)
def softmax_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B S Hk D"],
    v: Float[Array, "B S Hk V"],
    *,
    form: str = "chunkwise",
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | Segments | None = None,
    visibility: Visibility | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "B T Hq V"]:
    """Softmax attention over whole rows; arguments as `attention`.

    Under rules that split "time" over a mesh axis, the chunkwise form goes around the ring of devices, where it is
    given no ``visibility``.

    Args:
      form: "chunkwise" (blocks, O(T) memory) or "parallel" (the T x S scores in memory).

    Raises:
      ValueError: ``form`` is unknown, or shapes disagree.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    split = axes.context_parallel(q.shape[1]) if form == "chunkwise" and visibility is None else None
    if split is not None:
        check_row(q, k, v)
        row, scale = row_segments(segment_ids, *q.shape[:2]), q.shape[3] ** -0.5 if scale is None else scale
        return ring_attention(q, k, v, row, causal=causal, scale=scale, cap=cap, mesh=split[0], axis=split[1])
    return FORMS[form](q, k, v, causal=causal, segment_ids=segment_ids, visibility=visibility, scale=scale, cap=cap)


__all__ = [
    "FORMS",
    "Blocks",
    "Dilated",
    "KVCache",
    "LeftContext",
    "Line",
    "RingCache",
    "Visibility",
    "append",
    "attend",
    "attention",
    "block_means",
    "blockwise_attention",
    "choose_blocks",
    "forgetting_attention",
    "lay_out",
    "merge",
    "next_mean",
    "over_gathered_keys",
    "read_slots",
    "row_segments",
    "selected_attention",
    "softmax_attention",
    "strided_attention",
    "window_attention",
]
