"""Image sets: the split, and rows as they are drawn."""

import sys

import numpy as np
import pytest

from effarch.config import UserError
from effarch.data.batches import Batches, DataPosition
from effarch.data.images import Digits, ImageRows, ImagesConfig, image_sets, stratified


class Made(ImagesConfig):
    """A hundred images of three uneven classes, each image told by its first pixel."""

    def read(self):
        images = np.zeros((100, 2, 2, 1), np.float32)
        images[:, 0, 0, 0] = np.arange(100)
        return images, np.repeat(np.arange(3, dtype=np.int32), [50, 30, 20])


def numbers(rows: ImageRows) -> set[int]:
    return set(rows.images[:, 0, 0, 0].astype(int).tolist())


def test_the_split_is_stratified_and_a_function_of_the_config():
    config = Made(test_fraction=0.2, validation_fraction=0.25)
    sets = image_sets(config, 4)
    parts = {name: numbers(getattr(sets, name)) for name in ("train", "validation", "test")}
    assert set.union(*parts.values()) == set(range(100)) and sum(map(len, parts.values())) == 100
    assert {name: np.bincount(getattr(sets, name).labels).tolist() for name in parts} == {
        "train": [30, 18, 12],
        "validation": [10, 6, 4],
        "test": [10, 6, 4],
    }
    for rows in (sets.train, sets.validation, sets.test):
        images, labels = config.read()
        assert (labels[rows.images[:, 0, 0, 0].astype(int)] == rows.labels).all()
        assert rows.seq_len == 4
    again = image_sets(config, 4)
    assert numbers(again.test) == parts["test"] and again.digest == sets.digest
    other = image_sets(config.replace(split_seed=1), 4)
    assert numbers(other.test) != parts["test"] and other.digest == sets.digest
    # What is scored meanwhile does not move what is scored at the end.
    assert numbers(image_sets(config.replace(validation_fraction=0.5), 4).test) == parts["test"]


def test_small_classes():
    labels = np.asarray([0] * 2 + [1] * 9)
    assert np.bincount(labels[stratified(labels, 0.01, 0, 0)]).tolist() == [1, 1]
    assert np.bincount(labels[stratified(labels, 0.99, 0, 0)]).tolist() == [1, 8]
    with pytest.raises(UserError, match="at least two images of each class to split, got one of class 7"):
        stratified(np.asarray([0, 0, 7]), 0.5, 0, 0)


def test_rows_are_drawn_in_batches_and_in_order():
    rows = image_sets(Made(), 4).train
    batches = Batches(rows, 8, seed=3)
    epoch = [batches.batch_at(DataPosition(0, n)) for n in range(batches.batches_per_epoch)]
    seen = [int(i) for batch in epoch for i in batch["inputs"][:, 0, 0, 0]]
    assert len(set(seen)) == len(seen) == 8 * (len(rows) // 8) and set(seen) <= numbers(rows)
    assert all(batch["labels"].dtype == np.int32 and (batch["weights"] == 1).all() for batch in epoch)
    whole = list(rows.in_order(50))
    assert [batch["inputs"].shape for batch in whole] == [(50, 2, 2, 1)] * 2
    assert sum(batch["weights"].sum() for batch in whole) == len(rows)
    assert (whole[1]["weights"][len(rows) - 50 :] == 0).all()
    assert (np.concatenate([batch["inputs"] for batch in whole])[: len(rows)] == rows.images).all()


def test_the_digits():
    pytest.importorskip("sklearn", reason="needs the extra `images`")
    sets = image_sets(Digits(), 16)
    assert [len(rows) for rows in (sets.train, sets.validation, sets.test)] == [1295, 143, 359]
    assert sets.train.images.shape[1:] == (8, 8, 1) and sets.train.images.dtype == np.float32
    assert sets.train.images.min() == -1 and sets.train.images.max() == 1
    for rows in (sets.train, sets.validation, sets.test):
        counts = np.bincount(rows.labels, minlength=10)
        assert counts.min() >= 0.95 * counts.max() - 1


def test_without_scikit_learn_one_line_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError) as error:
        image_sets(Digits(), 16)
    assert error.value.lines == ("data: expected the extra `images` to be installed, got no scikit-learn",)
