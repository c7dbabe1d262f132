"""What is read from YAML and overrides, and what is written."""

from pathlib import Path

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from effarch.config import Config, did_you_mean, load, to_yaml
from tests.config.example import Garden, Maple, Oak, Root, Stage


def test_configs_are_frozen_and_hashable_with_lists_as_tuples():
    config = Root.model_validate({"names": ["a", "b"], "stages": [{"kind": "dig"}]})
    assert config.names == ("a", "b") and hash(config) == hash(config.replace())
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.lr = 2.0  # ty: ignore


def test_replace_checks():
    assert Maple().replace(height=4) == Maple(height=4)
    with pytest.raises(pydantic.ValidationError, match="expected an integer > 0, got -1"):
        Maple().replace(height=-1)


def test_python_callers_get_the_same_words():
    with pytest.raises(pydantic.ValidationError, match='unknown key; did you mean "height"'):
        Maple(heigt=3)  # ty: ignore


def test_defaults_are_checked_too():
    class Wrong(Config):
        size: int = Field(-1, gt=0)

    with pytest.raises(pydantic.ValidationError, match="expected an integer > 0, got -1"):
        Wrong()


def test_did_you_mean():
    assert did_you_mean("glaa", ["gla", "retnet"]) == '; did you mean "gla"?'
    assert did_you_mean("zzz", ["gla"]) == ""


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("lr=1e-3", "lr", 1e-3),
        ("lr=3", "lr", 3.0),
        ("batch_size=1e3", "batch_size", 1000),
        ("batch-size=16", "batch_size", 16),
        ("names=[gla,retnet]", "names", ("gla", "retnet")),
        ("eos=null", "eos", None),
        ("title=null", "title", None),
        ("run_name=null", "run_name", "null"),
        ("run_name=", "run_name", ""),
        ("run_name=007", "run_name", "007"),
        ("run_name=2026-01-01", "run_name", "2026-01-01"),
        ("run_name=def f(x): # y ", "run_name", "def f(x): # y "),
        ("run_name=[1, 2]", "run_name", "[1, 2]"),
        ("run_name='a=b'", "run_name", "a=b"),
        ("remat=no", "remat", False),
        ("folder=~/x", "folder", Path("~/x")),
        ("folder=12", "folder", Path("12")),
    ],
)
def test_override_values(override, key, value):
    result = getattr(load(Root, None, [override]), key)
    assert result == value and type(result) is type(value)


def test_floats_without_a_point_in_files(file):
    assert load(Root, file("lr: 2e-4\nnames: ['1e3', no]\n")) == Root(lr=2e-4, names=("1e3", "no"))


def test_the_last_override_wins():
    assert load(Root, None, ["lr=1", "lr=2"]).lr == 2.0


def test_what_is_not_said_keeps_the_default_to_any_depth():
    config = load(Root, None, ["garden.tree.sap=1", "spare.paths=3", "stages.1.steps=7"])
    assert config.garden == Garden(paths=5, tree=Maple(height=2, sap=1.0))
    assert config.spare == Garden(paths=3)
    assert (
        load(Root, None, ["hedge.height=2"]).hedge == Oak(height=2) and load(Root, None, ["hedge=null"]).hedge is None
    )
    assert config.stages == (Stage(kind="dig"), Stage(kind="sow", steps=7))


def test_list_entries_of_a_file_are_set_by_index(file):
    path = file("stages:\n- {kind: sow, steps: 2}\n- {kind: dig}\nnames: [a, b]\n")
    config = load(Root, path, ["stages.1.steps=9", "names.0=c"])
    assert config.stages == (Stage(kind="sow", steps=2), Stage(kind="dig", steps=9))
    assert config.names == ("c", "b")


@pytest.mark.parametrize(
    "overrides, tree",
    [
        ([], Maple(height=6, sap=3.0)),
        (["garden.tree.type=oak"], Oak()),  # the file's keys belong to the maple
        (["garden.tree.type=maple"], Maple(height=6, sap=3.0)),
        (["garden.tree.type=oak", "garden.tree.acorns=.25"], Oak(acorns=0.25)),
        (["garden.tree.acorns=.25", "garden.tree.type=oak"], Oak(acorns=0.25)),  # in any order
        (["garden.tree=oak", "garden.tree.height=3"], Oak(height=3)),
        (["garden.tree={type: oak, height: 5}"], Oak(height=5)),
        (["garden.tree={type: oak, height: 5}", "garden.tree.acorns=.25"], Oak(height=5, acorns=0.25)),
    ],
)
def test_changing_the_type_starts_from_its_defaults(file, overrides, tree):
    path = file("garden:\n  tree: {type: maple, height: 6, sap: 3}\n")
    assert load(Root, path, overrides).garden.tree == tree


def test_to_yaml_is_readable_and_keeps_the_order():
    text = to_yaml(Root(names=("a", "1e3")))
    assert text.startswith("run_name: run\ntitle: null\nbatch_size: 8\nlr: 0.001\ngarden:\n  tree:\n    type: maple\n")
    assert "names: [a, '1e3']\n" in text


@settings(max_examples=60)
@example(word="\x85", lr=1e-5, words=["\u2028"])
@given(
    word=st.text(),
    lr=st.floats(allow_nan=False),
    words=st.lists(
        st.sampled_from(["", "no", "null", "1e3", "0x1", "a: b", "# c", "é", "~", ".inf", "<<", "2026-01-01"])
    ),
)
def test_yaml_round_trips(tmp_path_factory, word: str, lr: float, words: list[str]):
    config = Root(run_name=word, lr=lr, names=tuple(words), garden=Garden(tree=Oak(acorns=0.25)))
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="")
    assert load(Root, path) == config
