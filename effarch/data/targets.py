"""From rows of tokens to what is predicted from what."""

from typing import Any


def shift(batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    """``(inputs, targets, target_mask)``: the target of token t is token t + 1 of the same document.

    Pure, for numpy and jax arrays alike (also under ``jax.jit``). Lengths stay T, so that they divide as before: the
    last column has no target.

    Args:
      batch: ``tokens``, ``segment_ids`` (integers) and ``loss_mask`` (0 or 1), each ``[B, T]``.

    Returns:
      ``inputs [B, T]``, which are the tokens; ``targets [B, T]``, 0 where there is none; ``target_mask [B, T]`` in the
      dtype of ``loss_mask``: 1 where the target counts, that is where t and t + 1 are of one document and
      ``loss_mask[t + 1]`` is 1.

    Raises:
      ValueError: the arrays differ in shape.
    """
    tokens, segment_ids, loss_mask = batch["tokens"], batch["segment_ids"], batch["loss_mask"]
    if not tokens.shape == segment_ids.shape == loss_mask.shape or tokens.ndim != 2:
        shapes = [list(array.shape) for array in (tokens, segment_ids, loss_mask)]
        raise ValueError(f"batch: expected tokens, segment_ids and loss_mask of one shape [B, T], got {shapes}")
    following = _following(segment_ids)
    counts = (segment_ids == following) & (segment_ids != 0)
    return tokens, _following(tokens), _following(loss_mask) * counts.astype(loss_mask.dtype)


def _following(x: Any) -> Any:
    """``x[:, t + 1]`` at t, 0 in the last column."""
    numpy = x.__array_namespace__()
    return numpy.concat([x[:, 1:], numpy.zeros_like(x[:, :1])], axis=1)
