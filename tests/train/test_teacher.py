"""Tokenizers go with a run; teachers come from runs and from folders of the Hugging Face hub, with their tokens."""

import json
import shutil
from pathlib import Path

import jax
import pytest

from effarch import cli, hub
from effarch.config import UserError, load, main
from effarch.data import load_tokenizer
from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig
from effarch.experiment.teacher import is_finished, teacher_config
from effarch.hub.families import llama
from effarch.models.lm import LMConfig, make_lm
from effarch.training.checkpoint import read_metadata
from effarch.training.faults import StopSignal
from effarch.training.load import load_lm
from tests.data import tokenizers as made
from tests.train import tiny
from train.distill import run as run_distill
from train.pretrain import run as run_pretrain
from train.teacher import open_teacher, prepare_text

pytest.importorskip("tokenizers", reason="needs the extra hub")

BPE = "data.tokenizer={type: bpe, vocab_size: 300}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture(scope="module")
def files(root) -> str:
    return tiny.corpus(root / "corpus")


@pytest.fixture(scope="module")
def trained(root, files) -> Path:
    """A run with a tokenizer of its own."""
    saved = ("checkpoint.every=1", "checkpoint.keep=9")
    arguments = tiny.pretrain(root, files, BPE, "run_name=bpe", "steps=2", "model.num_layers=1", *saved)
    assert main(PretrainConfig, run_pretrain, argv=arguments, prog="python -m train.pretrain") == 0
    return root / "runs" / "bpe"


@pytest.fixture(scope="module")
def checkpoint(root, files) -> Path:
    """A Llama in the layout of the Hugging Face hub, with a vocabulary larger than its tokenizer's."""
    config = load(PretrainConfig, None, tiny.pretrain(root, files)).model.replace(vocab_size=320, num_layers=1)
    lm = jax.jit(lambda: make_lm(config, 1))()
    return made.sentencepiece(Path(hub.save_lm(root / "llama", lm, llama.export(config))))


def distillation(root, files, *more: str) -> DistillConfig:
    """The arguments of a distillation that say nothing of the teacher's model."""
    arguments = [word for word in tiny.distill(root, files, *more) if not word.startswith("teacher.model")]
    return load(DistillConfig, None, arguments)


def test_the_tokenizer_goes_with_the_run_and_generates(trained: Path, capsys):
    tokenizer = load_tokenizer(trained)
    _, metadata = read_metadata(trained)
    assert metadata["tokenizer"] == tokenizer.about() and tokenizer.bos_id == 0
    assert metadata["model"]["vocab_size"] == 300 == load_lm(trained).config.vocab_size  # it followed the tokenizer
    assert load(PretrainConfig, trained / "config.yaml").model.vocab_size == 300
    assert cli.run(["generate", str(trained), "prompt=the state", "max_new_tokens=4"]) == 0
    assert capsys.readouterr().out.startswith("the state")


def test_a_model_must_have_rows_for_the_tokens(root, files, capsys):
    arguments = tiny.pretrain(root, files, BPE, "model.vocab_size=299", "run_name=small")
    assert main(PretrainConfig, run_pretrain, argv=[*arguments, "--dry-run"], prog="python -m train.pretrain") == 2
    expected = "error: model.vocab_size: expected at least the 300 of data.tokenizer, got 299\n"
    assert capsys.readouterr().err == expected


def test_a_finished_run_is_a_teacher_as_it_is(root, files, trained: Path, capsys):
    config = distillation(root, files, f"teacher.path={trained}", "eval.window=8")  # trained with another window
    assert teacher_config(config) == load_lm(trained).config
    prepared = prepare_text(config, config.seq_len)
    assert prepared.tokenizer.about() == load_tokenizer(trained).about()
    with StopSignal() as stop:
        assert open_teacher(config, prepared, stop).config == teacher_config(config)
    assert run_distill(config, dry_run=True) == 0
    assert "teacher: 15,840 parameters" in capsys.readouterr().out
    # A recipe's file says how to train one, where there is none.
    assert teacher_config(config.replace(teacher=config.teacher.replace(steps=9, model=LMConfig(dim=96)))) == (
        teacher_config(config)
    )


def test_a_name_of_the_hub_has_a_prefix(root, files, monkeypatch, trained: Path):
    monkeypatch.setattr("effarch.experiment.teacher.locate", {"owner/model": trained}.__getitem__)
    assert teacher_config(distillation(root, files, "teacher.path=hf:owner/model")) == load_lm(trained).config


def test_a_run_that_was_stopped_is_none(trained: Path, tmp_path: Path):
    assert is_finished(trained)
    stopped = shutil.copytree(trained, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "2")
    assert not is_finished(stopped) and not is_finished(tmp_path)


def test_a_checkpoint_of_the_hub_is_a_teacher(root, files, checkpoint: Path, capsys):
    config = distillation(root, files, f"teacher.path={checkpoint}")
    prepared = prepare_text(config, config.seq_len)
    assert prepared.tokenizer.digest == load_tokenizer(checkpoint).digest
    assert prepared.tokenizer.bos_id == 1 == prepared.train.take([0])["tokens"][0, 0]
    with StopSignal() as stop:
        teacher = open_teacher(config, prepared, stop)
    assert teacher.config == teacher_config(config) and teacher.config.vocab_size == 320
    assert run_distill(config, dry_run=True) == 0
    capsys.readouterr()
    assert cli.run(["generate", str(checkpoint), "prompt=the cat", "max_new_tokens=4"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_other_tokens_than_the_teachers_are_refused(root, files, checkpoint: Path, trained: Path):
    named = f"data.tokenizer={{type: file, path: {trained}}}"
    config = distillation(root, files, f"teacher.path={checkpoint}", named)
    with pytest.raises(UserError, match=r"data.tokenizer: expected the tokens of the teacher, .*; token 0: '<unk>'"):
        prepare_text(config, config.seq_len)
    same = distillation(root, files, f"teacher.path={trained}", named)
    assert prepare_text(same, same.seq_len).tokenizer.digest == load_tokenizer(trained).digest


def test_a_folder_of_something_else_is_no_teacher(root, files, tmp_path: Path, checkpoint: Path):
    (tmp_path / "notes.txt").write_text("")
    config = distillation(root, files, f"teacher.path={tmp_path}")
    with pytest.raises(UserError, match="teacher.path: expected the folder of a run"):
        teacher_config(config)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    data = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**data, "vocab_size": 20}))
    with pytest.raises(UserError, match="data.tokenizer: expected at most the 20 tokens of the teacher"):
        prepare_text(distillation(root, files, f"teacher.path={broken}"), 64)
