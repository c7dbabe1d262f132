"""Every bug can still be planted, and (slowly) every one is caught."""

import tempfile
from pathlib import Path

import pytest

from tests.planted.bugs import BUGS
from tests.planted.plant import PROJECT, copy_project, failing, planted, source


def test_there_are_many_and_each_has_a_name():
    assert len(BUGS) >= 20 and len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_its_line_is_where_it_was(bug):
    assert source(bug) != source(bug).replace(bug.old, bug.new)
    for test in bug.tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (PROJECT / path).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_suite_catches_it(bug):
    with tempfile.TemporaryDirectory(prefix="effarch-planted-") as folder:
        root = copy_project(Path(folder))
        with planted(root, bug):
            assert failing(root, bug.tests)
