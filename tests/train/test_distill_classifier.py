"""A whole distillation of a classifier of images, tiny, in this process."""

import json
from pathlib import Path

import pytest
from flax import nnx

from effarch.config import main
from effarch.hub import load_encoder, write_checkpoint
from effarch.hub.families import vit
from effarch.hub.parameters import names_of, written
from effarch.models.classifier import Classifier
from effarch.training.load import load_classifier
from tests.models.tiny import same_bits
from tests.train import tiny
from train.distill_classifier import DistillClassifierConfig, run
from train.encoder_results import EncoderResults

pytest.importorskip("sklearn", reason="needs the extra `images`")

TEACHER = """{type: encoder_attention, num_heads: 2, num_kv_heads: 2, head_dim: 16}"""


def command(root: Path, name: str, *more: str) -> int:
    """The exit code of a run."""
    model = "{input: {type: patches, height: 8, width: 8, channels: 1, patch: 4}, dim: 32, num_layers: 2, "
    model += "pool: class_token_first, positions: learned, "
    model += f"pattern: [{{mixer: {TEACHER}, channel: {{type: gelu_mlp, hidden: 64}}}}]}}"
    words = [
        f"output_dir={root}",
        f"run_name={name}",
        "batch_size=64",
        f"teacher.model={model}",
        "teacher.steps=120",
        "teacher.optimizer={learning_rate: 1.0e-2, warmup_steps: 4}",
        "student.mixer={type: mlp_mixer, hidden: 16}",
        "scratch.train=false",
        "stages=[{type: align, target: block_out, steps: 20, optimizer: {learning_rate: 1.0e-2, warmup_steps: 2}}, "
        "{type: logits, steps: 60, loss: {temperature: 2.0}, optimizer: {learning_rate: 5.0e-3, warmup_steps: 2}}]",
        "log.every=1",
        *more,
    ]
    return main(DistillClassifierConfig, run, argv=words, prog="python -m train.distill_classifier")


def as_vit(teacher: Classifier, folder: Path) -> Path:
    """A teacher in transformers' format."""
    c = teacher.config
    said = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "hidden_size": c.dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_act": "gelu_new",
        "layer_norm_eps": c.norm_eps,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "id2label": {str(i): str(i) for i in range(c.classes)},
    }
    return write_checkpoint(folder, said, written(teacher, vit.rules(c, names_of(teacher))))


@pytest.mark.slow
def test_from_end_to_end(tmp_path, capsys, monkeypatch):
    assert command(tmp_path, "whole") == 0
    folder = tmp_path / "whole"
    report = json.loads((folder / "report.json").read_text())
    rows = {row["name"]: row for row in report["models"]}
    assert list(rows) == ["teacher", "student, converted", "student, after align", "student, after logits"]
    assert rows["teacher"]["accuracy"] > 0.7
    kl = [row["kl_bits"] for row in report["models"][1:]]
    assert kl[2] < 0.5 * kl[0]
    assert rows["student, after logits"]["accuracy"] > 0.6 > rows["student, converted"]["accuracy"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for phase in ("align", "logits"):
        losses = [line["loss"] for line in lines if line["phase"] == phase]
        assert losses[-1] < 0.8 * losses[0]
    assert [line["step"] for line in lines] == list(range(1, 81))
    student = load_classifier(folder)
    assert student.config.pattern[0].mixer.length == 5  # four patches and the class token
    assert same_bits(nnx.split(load_encoder(folder / "export"))[1], nnx.split(student)[1])  # what goes out is it

    # With its teacher as a ViT of the hub, and stopped between the stages: the same student.
    elsewhere = f"teacher.path={as_vit(load_classifier(folder / 'teacher'), tmp_path / 'vit')}"
    with tiny.stopped_after("student, after align", EncoderResults, monkeypatch):
        command(tmp_path, "stopped", elsewhere)
    assert command(tmp_path, "stopped", elsewhere, "checkpoint.resume=true") == 0
    again = json.loads((tmp_path / "stopped" / "report.json").read_text())
    assert [row["name"] for row in again["models"]] == list(rows)
    assert again["models"][-1] == report["models"][-1]


def test_mistakes_are_named(tmp_path, capsys):
    for more, message in (
        (["student.mixer={type: mlp_mixer, length: 9}"], "error: pattern: expected length 5 (tokens of a row) in mlp_"),
        (
            ["stages=[{type: align, seq_len: 8}]"],
            "error: stages.0.seq_len: expected null, for rows of an encoder are w",
        ),
        (
            ["stages=[{type: orient}]"],
            'error: stages.0.type: unknown encoder_stage "orient" (known: align, cross_ent',
        ),
        (["teacher.model.classes=9"], "error: model.classes: expected at least 10, got 9"),
    ):
        assert command(tmp_path, "wrong", *more) == 2
        line, *_ = capsys.readouterr().err.splitlines()
        assert line.startswith(message)
    assert not (tmp_path / "wrong").exists()
