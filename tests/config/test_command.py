"""The one grammar of the command line, and the entry of every command."""

from typing import Any

import pytest

from effarch.config import Config, UserError, load, main, parse_arguments
from tests.config.example import Needy, Root


def test_one_grammar():
    same = (["x.yaml"], ["a.b_c=1"], {"dry_run"})
    assert parse_arguments(["x.yaml", "a.b-c=1", "--dry-run"]) == same
    assert parse_arguments(["--dry_run", "--a.b-c=1", "x.yaml"]) == same
    assert parse_arguments(["--a.b_c", "1", "x.yaml", "--dry-run"]) == same


def test_words_that_are_not_overrides():
    assert parse_arguments(["./a=b.yaml", "-", "--", "--x", "k=v"]) == (["./a=b.yaml", "-", "--x", "k=v"], [], set())
    assert parse_arguments(["-h", "--lr", "-1", "p=a=b"]) == ([], ["lr=-1", "p=a=b"], {"help"})


def test_argument_errors_all_at_once():
    with pytest.raises(UserError) as error:
        parse_arguments(["-x", "--lr", "--dryrun"])
    assert error.value.lines == (
        '-x: expected key=value, --key value or a flag, got "-x"',
        "--lr: expected a value (--lr=VALUE)",
        '--dryrun: expected a value (--dryrun=VALUE); did you mean "dry_run"?',
    )


def call(*argv: str, schema: type[Config] = Root, **options: Any) -> tuple[int, list[Any]]:
    seen: list[Any] = []

    def run(config, dry_run=False):
        seen.append((config, dry_run))

    return main(schema, run, argv=argv, prog="prog", **options), seen


def test_main_runs_with_the_config(file):
    path = str(file("lr: 1\nbatch_size: 2\n"))
    assert call(path, "lr=2") == (0, [(Root(lr=2.0, batch_size=2), False)])
    assert call("--lr", "2", "--dry-run") == (0, [(Root(lr=2.0), True)])


def test_main_returns_what_run_returns():
    assert main(Root, lambda config: 75, argv=[], prog="prog") == 75


def test_main_reports_errors_on_stderr(capsys):
    assert call("lr=x", "eos=x") == (2, [])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        'error: lr: expected a number, got "x"\nerror: eos: expected an integer >= 0 or null, got "x"\n'
    )


def test_main_reports_errors_of_run(capsys):
    def run(config):
        raise UserError("one", "two")

    assert main(Root, run, argv=[], prog="prog") == 2
    assert capsys.readouterr().err == "error: one\nerror: two\n"
    assert main(Root, run, argv=["--dry-run"], prog="prog") == 2
    assert capsys.readouterr().err == "error: --dry-run: prog has nothing to build\n"


def test_main_stops_on_ctrl_c(capsys):
    def run(config):
        raise KeyboardInterrupt

    assert main(Root, run, argv=[], prog="prog") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_print_config_prints_what_load_reads(capsys, file):
    assert call("--print-config", "garden.tree=oak", "lr=1e-5") == (0, [])
    assert load(Root, file(capsys.readouterr().out)) == load(Root, None, ["garden.tree=oak", "lr=1e-5"])


def test_positionals(capsys):
    assert call("5", schema=Needy, positional="size") == (0, [(Needy(size=5), False)])
    assert call("5", "word=y z", schema=Needy, positional="size")[1] == [(Needy(size=5, word="y z"), False)]
    assert call("a", "b", positional=()) == (2, [])
    assert call(required=True) == (2, [])
    assert capsys.readouterr().err == (
        'error: expected key=value, got "a"\nerror: expected key=value, got "b"\nerror: missing CONFIG.yaml\n'
    )


def test_help_lists_the_schema(capsys):
    assert call("--help", description="Plants trees.") == (0, [])
    text = capsys.readouterr().out
    assert text.startswith(
        "usage: prog [CONFIG.yaml] [key=value ...] [--help | --print-config | --dry-run]\n\nPlants trees.\n"
    )
    listing = [line.split() for line in text.splitlines()]
    assert "batch_size an integer > 0 8 global batch size (sequences)".split() in listing
    assert "garden.tree.type one of maple, oak maple what grows (keys below: those of maple)".split() in listing
    assert "garden.tree.height an integer > 0 2 metres".split() in listing  # the default's, not the class's
    assert "spare a mapping or null null".split() in listing
    assert "hedge.type one of maple, oak or null oak (keys below: those of oak)".split() in listing
    assert "stages.N.steps an integer >= 1 10 strokes of the spade".split() in listing
    assert 'stages.N.kind one of "dig", "sow" required'.split() in listing
    assert "rows.N.type one of maple, oak required".split() in listing


def test_help_names_required_positionals(capsys):
    assert call("-h", schema=Needy, positional="size", required=True) == (0, [])
    assert capsys.readouterr().out.startswith("usage: prog SIZE [key=value ...]")
