"""The rows of a suite: made of the data, as long as it is; what it lacks is said."""

import pytest

from effarch.data.prepare import DataConfig, prepare
from effarch.data.recall import RecallConfig
from effarch.data.sources import TextFiles
from effarch.eval.config import EvalConfig
from effarch.eval.suite import Suite, first_batches
from tests.train import tiny


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    source = TextFiles(files=(tiny.corpus(root / "corpus"),))
    return prepare(DataConfig(source=source, recall=RecallConfig(fraction=0, eval_rows=0)), 64, root / "data")


def test_lengths_are_cut_to_the_text_and_that_is_said(prepared):
    suite = Suite(prepared, EvalConfig(lengths=(20, 128, 10**6, 10**7)), 8)
    tokens = prepared.meta["sets"]["validation"]["tokens"]
    assert suite.lengths == (20, 128, tokens)
    text, *others = suite.notes
    assert text == f"eval.lengths: the validation text has {tokens} tokens, less than 1000000, 10000000"
    assert (
        len(others) == 1 and others[0].startswith("needle: length: expected at least the 5") and "got 20" in others[0]
    )


def test_what_is_not_asked_for_is_not_made(prepared):
    assert Suite(prepared, EvalConfig(lengths=()), 8).lengths == ()
    assert not Suite(prepared, EvalConfig(lengths=(64,), depths=()), 8).notes


def test_the_first_rows_in_whole_batches(prepared):
    assert [b["tokens"].shape for b in first_batches(prepared.validation, 11, 4)] == [(4, 64), (4, 64)]
    assert [b["tokens"].shape for b in first_batches(prepared.validation, 3, 8)] == [(3, 64)]
