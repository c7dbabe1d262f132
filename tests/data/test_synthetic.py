"""The answers of synthetic tasks against their definitions, token by token, and rows that depend on (seed, n) alone."""

import itertools

import numpy as np
import pydantic
import pytest

from effarch import registry
from effarch.data.synthetic import Task, batch
from effarch.data.synthetic.mqar import MQAR
from effarch.data.synthetic.parity import Parity
from effarch.data.synthetic.permutations import Permutations
from effarch.data.synthetic.selective_copy import SelectiveCopy

ROWS = 40
TASKS = [
    MQAR(length=40, pairs=8, fewest=3, asks=2, keys=12, values=10),
    MQAR(length=12, pairs=4, keys=4, values=2),
    Parity(length=17),
    Permutations(length=17, items=4),
    Permutations(length=17, items=5, moves="swaps"),
    SelectiveCopy(length=21, items=4, symbols=5),
]
IDS = [f"{task.type_name}{i}" for i, task in enumerate(TASKS)]


def answers(row: dict[str, np.ndarray]) -> dict[int, int]:
    """{place: answer}."""
    return {int(t): int(row["targets"][t]) for t in np.flatnonzero(row["mask"])}


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_rows_depend_on_seed_and_number_alone(task: Task):
    rows = batch(task, (3, 1), 2, 5)
    for name, x in rows.items():
        assert x.shape == (5, task.length) and x.dtype == np.int32, name
        for i in range(5):
            np.testing.assert_array_equal(x[i], task.row((3, 1), 10 + i)[name])
    assert set(np.unique(rows["mask"])) <= {0, 1} and rows["mask"].any(axis=1).all()
    assert (rows["targets"][rows["mask"] == 0] == 0).all()
    others = [task.row(seed, n)["tokens"] for seed, n in [((3, 1), 11), ((3, 2), 10), ((4, 1), 10)]]
    assert all((other != rows["tokens"][0]).any() for other in others)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_vocab_size_is_the_smallest_that_holds_everything(task: Task):
    rows = batch(task, (0,), 0, 400)
    assert min(x.min() for x in rows.values()) == 0
    largest = max(rows["tokens"].max(), rows["targets"].max())
    assert largest == task.vocab_size - 1


def test_every_registered_task_is_tested():
    assert set(registry.configs("task")) == {task.type_name for task in TASKS}


@pytest.mark.parametrize("task", [t for t in TASKS if isinstance(t, MQAR)], ids=lambda task: f"{task.pairs}")
def test_mqar_answers_every_key_with_its_value(task: MQAR):
    counts, places = set(), set()
    for n in range(ROWS):
        row = task.row((0,), n)
        tokens, found = row["tokens"].tolist(), answers(row)
        count = len(found) // task.asks
        counts.add(count)
        facts = dict(zip(tokens[: 2 * count : 2], tokens[1 : 2 * count : 2], strict=True))
        assert len(facts) == count  # no key twice
        assert all(1 <= key <= task.keys < value <= task.keys + task.values for key, value in facts.items())
        asked = [tokens[t] for t in found]
        assert sorted(asked) == sorted([*facts] * task.asks)
        assert all(found[t] == facts[tokens[t]] for t in found)
        blanks = [t for t in range(2 * count, task.length) if t not in found]
        assert min(found) >= 2 * count and all(tokens[t] == 0 for t in blanks)
        places |= set(found)
    assert counts == set(range(task.fewest or task.pairs, task.pairs + 1))
    assert places == set(range(2 * min(counts), task.length))


def test_parity_counts_ones():
    ones = 0
    for n in range(ROWS):
        row = Parity(length=30).row((0,), n)
        seen, expected = 0, {}
        for t, token in enumerate(row["tokens"].tolist()):
            seen += token
            expected[t] = seen % 2
        assert answers(row) == expected
        ones += seen
    assert 0.4 < ones / (30 * ROWS) < 0.6


@pytest.mark.parametrize(("items", "moves"), [(2, "all"), (3, "all"), (5, "all"), (5, "swaps")])
def test_permutations_are_composed_by_hand(items: int, moves: str):
    """Each permutation moves things that lie in places: tuples are applied one by one, without the table."""
    numbered = list(itertools.permutations(range(items)))
    task, tokens_seen, answers_seen = Permutations(length=60, items=items, moves=moves), set(), set()
    for n in range(ROWS):
        row = task.row((0,), n)
        images = list(range(items))  # where each thing has gone
        for token, target in zip(row["tokens"].tolist(), row["targets"].tolist(), strict=True):
            images = [numbered[token][image] for image in images]
            assert numbered[target] == tuple(images)
            tokens_seen.add(token)
            answers_seen.add(target)
        assert row["mask"].all()
    moved = {sum(i != x for i, x in enumerate(numbered[token])) for token in tokens_seen}
    allowed = 1 + items * (items - 1) // 2 if moves == "swaps" else len(numbered)
    assert len(tokens_seen) == allowed and len(answers_seen) == len(numbered)
    assert moved == {0, 2} if moves == "swaps" else max(moved) == items


def test_selective_copy_asks_for_the_symbols_in_order():
    task, places = SelectiveCopy(length=30, items=5, symbols=6), set()
    for n in range(ROWS):
        row = task.row((0,), n)
        tokens = row["tokens"].tolist()
        said = [token for token in tokens if token > 1]
        assert answers(row) == dict(zip(range(25, 30), said, strict=True))
        assert tokens[25:] == [1] * 5 and tokens[:25].count(0) == 20
        places |= {t for t, token in enumerate(tokens) if token > 1}
    assert places == set(range(25))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MQAR(length=47, pairs=16), r"length: expected at least \(2 \+ asks\) \* pairs = 48, got 47"),
        (lambda: MQAR(pairs=16, keys=15), "keys: expected at least pairs = 16, got 15"),
        (lambda: MQAR(pairs=4, fewest=5), "fewest: expected at most pairs = 4, got 5"),
        (lambda: SelectiveCopy(length=15, items=8), r"length: expected at least 2 \* items = 16, got 15"),
    ],
)
def test_what_does_not_fit_is_refused(make, message: str):
    with pytest.raises(pydantic.ValidationError, match=message):
        make()
