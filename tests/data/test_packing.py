import numpy as np
import pytest

from effarch.data.packing import place, plan

SEQ_LEN = 32


def packed(lengths: list[int], seq_len: int = SEQ_LEN) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Documents whose tokens are all different, and the rows they are packed into."""
    ends = np.cumsum(lengths)
    documents = [np.arange(end - length, end) + 1 for end, length in zip(ends, lengths, strict=True)]
    layout = plan(lengths, seq_len)
    arrays = {name: np.zeros((layout.rows, seq_len), np.int64) for name in ("tokens", "segment_ids", "loss_mask")}
    for number, document in enumerate(documents):
        place(arrays, layout, number, document)
    return documents, arrays


def segments(arrays: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    """Every segment's tokens, read from the rows alone."""
    found = []
    for tokens, ids in zip(arrays["tokens"], arrays["segment_ids"], strict=True):
        found += [tuple(tokens[ids == segment]) for segment in range(1, ids.max() + 1)]
    return found


def lengths_of(seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [1, SEQ_LEN, 2 * SEQ_LEN, SEQ_LEN + 1, *rng.integers(1, 5 * SEQ_LEN, size=200).tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_in_the_rows_exactly_once(seed: int):
    documents, arrays = packed(lengths_of(seed))
    expected = [tuple(d[i : i + SEQ_LEN]) for d in documents for i in range(0, len(d), SEQ_LEN)]
    assert sorted(segments(arrays)) == sorted(expected)
    assert sorted(arrays["tokens"][arrays["segment_ids"] > 0]) == list(range(1, sum(map(len, documents)) + 1))


@pytest.mark.parametrize("seed", range(5))
def test_segments_count_up_and_padding_stands_on_the_right(seed: int):
    _, arrays = packed(lengths_of(seed))
    for tokens, ids in zip(arrays["tokens"], arrays["segment_ids"], strict=True):
        real = int((ids > 0).sum())
        assert real > 0 and (ids[real:] == 0).all() and (tokens[real:] == 0).all()
        steps = np.diff(ids[:real], prepend=0)
        assert ids[0] == 1 and set(steps) <= {0, 1}


@pytest.mark.parametrize("seed", range(5))
def test_all_but_the_first_token_of_a_segment_count(seed: int):
    _, arrays = packed(lengths_of(seed))
    ids = arrays["segment_ids"]
    before = np.pad(ids[:, :-1], ((0, 0), (1, 0)))
    np.testing.assert_array_equal(arrays["loss_mask"], (ids > 0) & (ids == before))


def test_little_is_padding():
    _, arrays = packed(lengths_of(0))
    assert (arrays["segment_ids"] == 0).mean() < 0.01
    assert plan([20, 12, 20, 12, 25, 7], SEQ_LEN).rows == 3
    assert plan([10, 20, 12, 22], SEQ_LEN).rows == 2  # next-fit would take three


def test_the_plan_is_a_function_of_the_lengths():
    first, second = plan(lengths_of(1), SEQ_LEN), plan(lengths_of(1), SEQ_LEN)
    np.testing.assert_array_equal(first.tail_row, second.tail_row)
    np.testing.assert_array_equal(first.tail_offset, second.tail_offset)


def test_lengths_and_row_length_are_checked():
    with pytest.raises(ValueError, match="lengths: expected at least 1 token per document, got 0"):
        plan([3, 0], SEQ_LEN)
    with pytest.raises(ValueError, match="seq_len: expected at least 2, got 1"):
        plan([3], 1)
