import hashlib
import re

import numpy as np
import pytest

from effarch.config import UserError
from effarch.data.recall import KINDS, kind_of, recall_row, recall_rows

SEQ_LEN = 256
ROWS = 60


@pytest.fixture(scope="module", params=[26, 92])
def rows(request) -> dict[str, np.ndarray]:
    return recall_rows((0, 1), 0, ROWS, SEQ_LEN, request.param)


def documents(rows: dict[str, np.ndarray], index: int):
    """``(tokens, distance, loss_mask)`` of each document of a row."""
    ids = rows["segment_ids"][index]
    for segment in range(1, ids.max() + 1):
        where = np.flatnonzero(ids == segment)
        assert (np.diff(where) == 1).all()
        yield tuple(rows[name][index][where].tolist() for name in ("tokens", "distance", "loss_mask"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_stands_in_the_earlier_text_at_its_distance(rows, kind: str):
    answers = 0
    for index in [i for i in range(ROWS) if kind_of(i) == kind]:
        for tokens, distance, mask in documents(rows, index):
            assert tokens[0] == 256 and distance[0] == 0
            for t, d in enumerate(distance):
                assert mask[t] == (d > 0)
                if not d:
                    continue
                answers += 1
                # By search: all earlier places with the same prompt before them hold one symbol, the latest at t - d.
                places = [s for s in range(2, t) if tokens[s - 1] == tokens[t - 1]]
                assert {tokens[s] for s in places} == {tokens[t]}
                assert max(places) == t - d
    assert answers > 0.1 * SEQ_LEN * ROWS / 2


def test_lookups_are_facts_and_then_queries(rows):
    values: dict[str, set[str]] = {}
    for index in range(1, ROWS, 2):
        for tokens, distance, _ in documents(rows, index):
            text = bytes(tokens[1:]).decode()
            assert re.fullmatch(r"(\d[^\d.|]|\.)*\d?", text)
            pairs = [(match.start() + 2, match.group()) for match in re.finditer(r"\d[^\d.|]", text)]
            facts = {pair[0]: pair for _, pair in reversed(pairs)}
            assert {pair for _, pair in pairs} == set(facts.values())
            assert {pair for _, pair in pairs[: len(facts)]} == set(facts.values())
            assert [t for t, d in enumerate(distance) if d] == [t for t, _ in pairs[len(facts) :]]
            for key, value in facts.values():
                values.setdefault(key, set()).add(value)
    assert len(values) == 10 and all(4 < len(known) <= 8 for known in values.values())
    assert len(set.union(*values.values())) == sum(map(len, values.values()))  # no value belongs to two keys


def test_copies_are_periodic(rows):
    longest = 0
    for index in [i for i in range(ROWS) if kind_of(i) == "copy"]:
        for tokens, distance, _ in documents(rows, index):
            text = tokens[1:]
            period = next(p for p in range(1, len(text) + 1) if text[p:] == text[: len(text) - p])
            assert period < len(text) and max(distance) <= period
            longest = max(longest, period)
    assert longest > SEQ_LEN // 2


def test_distances_spread_from_short_to_far_beyond_a_window_of_64(rows):
    for kind in KINDS:
        distance = rows["distance"][[i for i in range(ROWS) if kind_of(i) == kind]]
        distance = distance[distance > 0]
        assert (distance <= 32).mean() > 0.2
        assert (distance > 64).mean() > 0.05  # the more answers stand near, the sooner the lookup is learned
        assert distance.max() > 128


def test_rows_are_nearly_full_and_padding_is_on_the_right(rows):
    ids = rows["segment_ids"]
    assert (ids == 0).mean() < 0.03 and (ids[:, : SEQ_LEN - 16] > 0).all()
    assert not rows["tokens"][ids == 0].any() and not rows["loss_mask"][ids == 0].any()
    assert rows["tokens"].max() == 256 and rows["tokens"].min() >= 0


def test_a_row_is_a_function_of_seed_and_index_alone():
    rows = recall_rows((0, 1), 0, ROWS, SEQ_LEN)
    for index in (0, 7, 12):
        for name, array in recall_row((0, 1), index, SEQ_LEN).items():
            np.testing.assert_array_equal(array, rows[name][index])
    assert (recall_row((0, 0), 7, SEQ_LEN)["tokens"] != rows["tokens"][7]).any()
    assert (recall_row((1, 1), 7, SEQ_LEN)["tokens"] != rows["tokens"][7]).any()
    assert len({row.tobytes() for row in rows["tokens"]}) == ROWS


def test_lengths_from_the_shortest_row_on_work():
    for seq_len in (32, 33, 48, 100):
        for index in range(20):
            for symbols in (16, 92):
                row = recall_row((0, 0), index, seq_len, symbols)
                assert all(array.shape == (seq_len,) for array in row.values())
    with pytest.raises(UserError, match=r"data.recall: expected seq_len of at least 32, got 31"):
        recall_row((0, 0), 0, 31)


@pytest.mark.parametrize(
    "seq_len, symbols, count, digest",
    [
        (256, 26, 24, "b9183ffd3e4656abe96d9469962d7c9b8a8412d39f7e722f727cade0508c7863"),
        (64, 30, 24, "5d22305778f1223cb4270ac2699c36757ce39bd92a9473e2f1753ae735573ec9"),
        (1024, 92, 12, "9332be6cd96d928f85c9f6f532d960e06fe61008b90f1b379268e94635482c22"),
    ],
)
def test_rows_of_bytes_are_those_of_every_version_before(seq_len: int, symbols: int, count: int, digest: str):
    rows = recall_rows((0, 1), 0, count, seq_len, symbols)
    bits = (rows[name].astype(np.int32).tobytes() for name in ("tokens", "segment_ids", "loss_mask", "distance"))
    assert hashlib.sha256(b"".join(bits)).hexdigest() == digest
