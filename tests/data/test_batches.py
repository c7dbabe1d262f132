import itertools
from pathlib import Path

import numpy as np
import pytest

from effarch.config import UserError
from effarch.data import Batches, DataPosition, Rows
from effarch.data.batches import permutation

N, T, B = 23, 8, 4


def write(folder: Path, tokens: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "tokens.npy", tokens.astype(np.uint16))
    np.save(folder / "segment_ids.npy", np.ones(tokens.shape, np.uint16))
    np.save(folder / "loss_mask.npy", np.ones(tokens.shape, np.uint8))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(write(tmp_path / "train", np.arange(N * T).reshape(N, T)), vocab_size=258)


def numbers(batch: dict[str, np.ndarray]) -> list[int]:
    """Which rows a batch holds."""
    return (batch["tokens"][:, 0] // T).tolist()


def test_batches_are_slices_of_the_permutation(rows: Rows):
    batches = Batches(rows, B, seed=3)
    assert batches.batches_per_epoch == N // B
    for epoch in (0, 1, 5):
        order = permutation(3, epoch, N)
        assert sorted(order) == list(range(N))
        for n in range(batches.batches_per_epoch):
            batch = batches.batch_at(DataPosition(epoch, n))
            assert numbers(batch) == order[n * B : (n + 1) * B].tolist()
            assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
                "tokens": ((B, T), np.int32),
                "segment_ids": ((B, T), np.int32),
                "loss_mask": ((B, T), np.float32),
            }
    orders = {permutation(seed, epoch, N).tobytes() for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("prefetch", [0, 2])
def test_going_on_from_a_position_is_never_having_stopped(rows: Rows, prefetch: int):
    batches = Batches(rows, B, seed=0)
    whole = list(itertools.islice(batches.iterate(prefetch=prefetch), 13))
    assert [position for position, _ in whole[:7]] == [
        *(DataPosition(0, n) for n in range(5)),
        DataPosition(1, 0),
        DataPosition(1, 1),
    ]
    for stop in (1, 4, 5, 9):
        start = batches.next_position(whole[stop - 1][0])
        rest = itertools.islice(Batches(rows, B, seed=0).iterate(start, prefetch=prefetch), 13 - stop)
        for (position, batch), (expected_position, expected) in zip(rest, whole[stop:], strict=True):
            assert position == expected_position
            np.testing.assert_array_equal(batch["tokens"], expected["tokens"])


def test_a_process_reads_the_rows_that_it_holds(rows: Rows):
    position, held = DataPosition(2, 1), np.asarray([1, 3])
    batches = Batches(rows, B, seed=1)
    whole, (at, part) = batches.batch_at(position), next(batches.iterate(position, held=held))
    assert at == position
    for name, array in whole.items():
        np.testing.assert_array_equal(part[name], array[held])


def test_in_order_gives_every_row_once_and_fills_up_with_padding(rows: Rows):
    batches = list(rows.in_order(B))
    assert len(batches) == 6 and all(batch["tokens"].shape == (B, T) for batch in batches)
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    np.testing.assert_array_equal(tokens[:N], np.arange(N * T).reshape(N, T))
    for name in ("tokens", "segment_ids", "loss_mask"):
        assert not batches[-1][name][N % B :].any()


def test_an_id_outside_the_vocabulary_is_named(tmp_path: Path):
    tokens = np.zeros((N, T))
    tokens[17, 3] = 258
    rows = Rows(write(tmp_path / "train", tokens), vocab_size=258)
    with pytest.raises(UserError, match=r"train/tokens.npy: row 17: token id 258 is outside the vocabulary of 258"):
        list(rows.in_order(B))
    batches = Batches(rows, 1, seed=0)
    with pytest.raises(UserError, match="row 17"):
        for _, _ in itertools.islice(batches.iterate(), N):
            pass


def test_broken_arrays_are_refused(rows: Rows):
    np.save(rows.folder / "loss_mask.npy", np.ones((N, T - 1), np.uint8))
    with pytest.raises(UserError, match=r"loss_mask.npy: expected the shape \[N, T\] of tokens.npy, got \[23, 7\]"):
        Rows(rows.folder, 258)
    (rows.folder / "loss_mask.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"cannot read .*loss_mask.npy"):
        Rows(rows.folder, 258)


def test_arguments_are_checked(rows: Rows):
    with pytest.raises(ValueError, match="seed: expected 0 <= seed"):
        Batches(rows, B, -1)
    with pytest.raises(UserError, match="expected at least batch_size=24 rows to train on, got 23"):
        Batches(rows, 24, 0)
    for position in (DataPosition(0, 5), DataPosition(-1, 0), DataPosition(0, -1)):
        with pytest.raises(ValueError, match="position: expected batch < 5"):
            Batches(rows, B, 0).batch_at(position)
