"""Useful floating-point operations of the chunk form, forward (a multiply-add is two)."""

from effarch.ops.recurrence.chunkwise import default_chunk


def recurrence_flops(
    kind: str, time: int, *, heads: int, key_heads: int, key_dim: int, value_dim: int, chunk: int | None = None
) -> int:
    """Matrix products inside chunks and with the state, for one row.

    Args:
      kind: "decay", "delta" or "rank_one". time: tokens. heads: of values. key_heads: of queries and keys.
      key_dim, value_dim: per head. chunk: tokens a chunk; None: what the op takes by default.
    """
    size = min(chunk or default_chunk(key_dim), time)
    score = 2 * size * key_dim * key_heads  # one C x C score matrix, per token
    apply = 2 * size * value_dim * heads  # one C x C matrix times values
    state = 2 * key_dim * value_dim * heads  # one read or write of the state
    per_token = {
        "decay": score + apply + 2 * state,
        "delta": 2 * score + 2 * apply + 3 * state + 2 * size * size * heads // 3,
        "rank_one": 4 * score + 4 * apply + 4 * state + 2 * size * size * heads // 3,
    }
    return time * per_token[kind]
