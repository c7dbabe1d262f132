"""The commands as a user meets them: what works prints, what does not is one line and exit code 2."""

import subprocess
import sys

import pytest

import train.distill
from effarch import cli, registry
from effarch.config import main

DISTILL = "python -m train.distill"


def distill(*argv: str) -> int:
    return main(train.distill.DistillConfig, train.distill.run, argv=argv, prog=DISTILL)


def refused(capsys, code: int, *parts: str) -> None:
    """One line on stderr, nothing on stdout."""
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line


def test_list_shows_every_mixer_and_channel(capsys):
    assert cli.run(["list"]) == 0
    mixers, channels, note = capsys.readouterr().out.split("\n\n")
    for kind, block in (("mixer", mixers), ("channel", channels)):
        heads, _, *lines = block.splitlines()
        assert [line.split()[0] for line in lines] == list(registry.names(kind))
        for line, config in zip(lines, registry.configs(kind).values(), strict=True):
            assert line.endswith("  " + config.paper) and config.transition in line
            assert line.index(config.paper) == heads.index("paper"), "words stand at the left"
    assert "width 1024, float32" in note and "16 heads of 64" in note
    cells = {line.split()[0]: line for line in mixers.splitlines()}
    assert "8.0 MiB" in cells["softmax_attention"] and "8.0 GiB" in cells["softmax_attention"]
    assert cells["retnet"].count("256 KiB") == 2 and "KiB" not in cells["mlp_mixer"] + cells["bidirectional"]

    assert cli.run(["list", "kind=channel"]) == 0
    assert capsys.readouterr().out.split("\n\n")[0] == channels


@pytest.mark.parametrize("dim", [512, 1024])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_listed_states_are_those_of_one_attention(dim, dtype, size):
    """So that they compare: caches in the dtype of activations, recurrent states in float32, heads of 64."""

    def states(name: str) -> list[int]:
        row = cli.described(name, registry.get("mixer", name), dim, dtype)
        return [row["state at 1k"], row["state at 1M"]]

    assert states("softmax_attention") == [2 * t * dim * size + 4 for t in (1024, 2**20)]  # and a count of tokens
    assert states("retnet") == states("hgrn2") == [64 * dim * 4] * 2
    assert states("deltanet") == [64 * dim * 4 + 3 * 3 * dim * size] * 2  # and three convolutions' last inputs


def test_help(capsys):
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)
    for verb in cli.VERBS:
        assert cli.run([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: effarch {verb}")
    assert distill("--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: {DISTILL} [CONFIG.yaml] [key=value ...]" in shown
    for key in ("student.mixer", "teacher.steps", "stages", "checkpoint.resume", "mesh.fsdp"):
        assert f"\n  {key}" in shown


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["generat"], ['unknown verb "generat"', 'did you mean "generate"?']),
        (["list", "kindd=mixer"], ["kindd", 'did you mean "kind"?']),
        (["list", "kind=mixers"], ["kind: expected", '"mixer"', '"channel"', 'got "mixers"']),
        (["list", "dim=100"], ["dim", "64", "100"]),
        (["list", "dim=0"], ["dim", "0"]),
        (["list", "--dry-run"], ["--dry-run", "nothing to build"]),
        (["generate"], ["missing RUN"]),
        (["evaluate", "no/such/run"], ["no/such/run: expected a folder, or a name", "found neither"]),
        (["evaluate", "a", "eval.lengths=[1]"], ["eval.lengths", "1"]),
        (["generate", "no/such/run"], ["no/such/run: expected the folder of a run, found none"]),
        (["generate", "tests"], ["tests/checkpoints: expected a checkpoint, found none"]),
        (["generate", "a", "temperature=-1"], ["temperature", "-1"]),
    ],
    ids=lambda x: " ".join(x) if x and isinstance(x[0], str) and " " not in x[0] else "",
)
def test_mistakes(argv, parts, capsys):
    refused(capsys, cli.run(argv), *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("student.mixer.type=gated_deltanett", ['unknown mixer "gated_deltanett"', 'did you mean "gated_deltanet"?']),
        ("student.mixr.type=retnet", ["student.mixr: unknown key", 'did you mean "mixer"?']),
        ("stages.0.stepz=3", ["stages.0.stepz: unknown key", 'did you mean "steps"?']),
        ("teacher.model.num_layers=0", ["teacher.model.num_layers", "got 0"]),
        ("teacher.model.pattern.0.mixer.type=retnet", ["teacher: expected softmax attention in layer 0, got retnet"]),
        ("student.mixer.num_key_heads=3", ["num_key_heads: expected a divisor of num_heads"]),
        ("student.mixer={type: gated_deltanet, num_heads: 9}", ["num_heads: expected a multiple of the teacher's"]),
        ("mesh.data=3", ["mesh"]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_mistakes_in_a_distillation(override, parts, capsys, tmp_path, monkeypatch):
    """Found before anything is written, in a dry run too."""
    monkeypatch.chdir(tmp_path)
    if not override.startswith("mesh"):
        refused(capsys, distill("--dry-run", override), *parts)
    refused(capsys, distill(override), *parts)
    assert not list(tmp_path.iterdir())


def test_missing_config(capsys):
    refused(capsys, distill("no/such.yaml"), "no/such.yaml")


def test_dry_run_builds_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert distill("--dry-run", "teacher.model.dim=64", "student.mixer=retnet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["teacher", "student"]
    assert all(int(line.split()[1].replace(",", "")) > 1000 for line in lines[:2])
    assert not list(tmp_path.iterdir())


def test_print_config_is_a_config(capsys, tmp_path):
    assert distill("--print-config", "student.mixer=retnet", "teacher.steps=7") == 0
    text = capsys.readouterr().out
    assert "steps: 7" in text and "type: retnet" in text
    (tmp_path / "x.yaml").write_text(text)
    assert distill("--print-config", str(tmp_path / "x.yaml")) == 0
    assert capsys.readouterr().out == text


def test_a_real_process():
    done = subprocess.run(
        [sys.executable, "-m", "effarch.cli", "generate", "no/such/run"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: no/such/run: expected the folder of a run, found none\n"
