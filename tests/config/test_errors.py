"""Every problem at once, one line each, in the user's terms."""

from pathlib import Path

import pydantic
import pytest

from effarch.config import Config, UserError, load
from tests.config.example import Needy, Root


def lines(*overrides: str, path: Path | None = None, schema: type[Config] = Root) -> list[str]:
    with pytest.raises(UserError) as error:
        load(schema, path, overrides)
    return list(error.value.lines)


def test_every_problem_at_once_one_line_each(file):
    path = file(
        "batch_size: x\ngarden:\n  tree: {type: maple, heigt: 3}\nrun_nam: a\nstages: [{kind: dgi}, {steps: 0}]\n"
    )
    assert lines("lr=abc", "eos=-1", "oops", "remat=7", path=path) == [
        'expected key=value, got "oops"',
        'batch_size: expected an integer > 0, got "x"',
        'lr: expected a number, got "abc"',
        'garden.tree.heigt: unknown key; did you mean "height"?',
        'stages.0.kind: expected one of "dig", "sow", got "dgi"',
        'stages.1.kind: missing; expected one of "dig", "sow"',
        "stages.1.steps: expected an integer >= 1, got 0",
        "eos: expected an integer >= 0 or null, got -1",
        "remat: expected true or false, got 7",
        'run_nam: unknown key; did you mean "run_name"?',
    ]


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["garden.tree.type=oka"], 'garden.tree.type: unknown tree "oka"; did you mean "oak"? (known: maple, oak)'),
        (["garden.tree=oka"], 'garden.tree: unknown tree "oka"; did you mean "oak"? (known: maple, oak)'),
        (["garden.tree=3"], "garden.tree: expected a tree, got 3"),
        (["rows=[oak, {height: 2}]"], "rows.1.type: missing; expected one of maple, oak"),
        (["garden.tree.height=3"], "garden.tree.height: expected an even number, got 3"),
        (["garden=3"], "garden: expected a mapping, got 3"),
        (["batch_size=true"], "batch_size: expected an integer > 0, got true"),
        (["batch_size=1.5"], "batch_size: expected an integer > 0, got 1.5"),
        (["batch_size.x=1"], "batch_size: expected an integer > 0, got a mapping"),
        (["batch_size=2", "batch_size.x=1"], "batch_size: expected a mapping to set a key in, got 2"),
        (["names=[a, 3]"], "names.1: expected text, got 3"),
        (["names=a"], 'names: expected a list, each text, got "a"'),
        (["stages.5.steps=2"], 'stages: expected an index below 2, got "5"'),
        (["names=[a]", "names.b=c"], 'names: expected an index below 1, got "b"'),
        (["eos=a: b"], 'eos: expected an integer >= 0 or null, got "a: b"'),
        (["a..b=1"], 'expected key=value, got "a..b=1"'),
        (["=1"], 'expected key=value, got "=1"'),
    ],
)
def test_override_errors(overrides, line):
    assert lines(*overrides) == [line]


def test_missing_key():
    assert lines(schema=Needy) == ["size: missing; expected an integer > 0"]


@pytest.mark.parametrize(
    "text, line",
    [
        ("a: b: c\n", "{path}:1: bad YAML: mapping values are not allowed here"),
        ("lr: 1\nremat: no\nlr: 2\n", '{path}:3: bad YAML: duplicate key "lr"'),
        ("- 1\n", "{path}: expected a mapping of keys to values, got [1]"),
        ("run_name: 7\n", "run_name: expected text, got 7"),
        ("1: 2\n", "1: unknown key"),
    ],
)
def test_file_errors(file, text, line):
    path = file(text)
    assert lines(path=path) == [line.format(path=path)]


def test_a_missing_file_hides_what_depends_on_it(tmp_path):
    path = tmp_path / "no.yaml"
    assert lines("oops", path=path, schema=Needy) == [
        f"{path}: No such file or directory",
        'expected key=value, got "oops"',
    ]
    assert lines(path=tmp_path) == [f"{tmp_path}: Is a directory"]


def test_an_error_in_a_union_is_one_line():
    class Either(Config):
        size: int | tuple[int, ...] = 1

    assert lines("size=x", schema=Either) == ['size: expected an integer or a list, each an integer, got "x"']
    assert load(Either, None, ["size=[1, 2]"]).size == (1, 2)


def test_an_error_of_the_whole_config_names_the_key():
    class Whole(Config):
        low: int = 1
        high: int = 2

        @pydantic.model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError(f"low: expected at most high = {self.high}, got {self.low}")
            return self

    assert lines("low=3", schema=Whole) == ["low: expected at most high = 2, got 3"]
