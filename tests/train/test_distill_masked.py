"""A whole distillation of a masked language model, tiny, in this process."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.config import load, main
from effarch.data.masking import Masking
from effarch.data.tokenizer import Tokenizer
from effarch.distill.losses import LogitLoss
from effarch.distill.masked import hidden_logits, hidden_tokens, hiding, transformed
from effarch.hub import load_encoder, write_checkpoint
from effarch.hub.families import bert
from effarch.hub.parameters import names_of, written
from effarch.models.masked_lm import MaskedLM
from effarch.training.load import load_masked_lm
from tests.models.tiny import FAST, same_bits
from tests.tolerances import TOL, assert_close
from tests.train import tiny
from train.distill_masked import DistillMaskedConfig, run
from train.encoder_results import EncoderResults
from train.teacher import prepare_for

ATTENTION = "{type: encoder_attention, num_heads: 2, num_kv_heads: 2, head_dim: 16}"
MODEL = (
    "{input: {type: ids, vocab_size: 264, length: 48, token_types: 2}, dim: 32, num_layers: 2, positions: learned, "
    "norm_after: true, embed_norm: true, pool: first, norm_eps: 1.0e-12, activation: gelu_tanh, "
    f"pattern: [{{mixer: {ATTENTION}, channel: {{type: gelu_mlp, hidden: 48}}}}]}}"
)


def words(root: Path, files: str, name: str, *more: str) -> list[str]:
    """The arguments of a run."""
    return [
        f"output_dir={root}",
        f"run_name={name}",
        f"cache_dir={root / 'data'}",
        f"data.source={{type: text_files, files: ['{files}']}}",
        "data.validation_fraction=0.3",
        "batch_size=32",
        "seq_len=48",
        "eval.rows=32",
        "masking.fraction=0.3",
        f"teacher.model={MODEL}",
        "teacher.steps=600",
        "teacher.optimizer={learning_rate: 4.0e-3, warmup_steps: 20}",
        "student.mixer={type: bidirectional, inner: retnet}",
        "scratch.train=false",
        "stages=[{type: align, steps: 15, optimizer: {learning_rate: 1.0e-2, warmup_steps: 2}}, "
        "{type: logits, steps: 40, optimizer: {learning_rate: 5.0e-3, warmup_steps: 2}}]",
        "log.every=1",
        *more,
    ]


def command(root: Path, files: str, name: str, *more: str) -> int:
    """The exit code of a run."""
    return main(DistillMaskedConfig, run, argv=words(root, files, name, *more), prog="python -m train.distill_masked")


def as_bert(teacher: MaskedLM, tokenizer: Tokenizer, folder: Path) -> Path:
    """A teacher in transformers' format."""
    c = teacher.config
    said = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_size": c.dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "hidden_act": "gelu_new",
        "layer_norm_eps": c.norm_eps,
        "max_position_embeddings": 48,
        "vocab_size": 264,
    }
    write_checkpoint(folder, said, written(teacher, bert.rules(c, names_of(teacher))))
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> str:
    """A pattern of text files."""
    return tiny.corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.mark.slow
def test_from_end_to_end(tmp_path, files, capsys, monkeypatch):
    assert command(tmp_path, files, "whole", "scratch.train=true") == 0
    folder = tmp_path / "whole"
    report = json.loads((folder / "report.json").read_text())
    rows = {row["name"]: row for row in report["models"]}
    assert list(rows) == [
        "teacher",
        "student, from scratch",
        "student, converted",
        "student, after align",
        "student, after logits",
    ]
    kl = [rows[f"student, {name}"]["kl_bits"] for name in ("converted", "after align", "after logits")]
    assert kl[2] < kl[1] < kl[0] and kl[2] < 0.5 * kl[0]
    last = rows["student, after logits"]
    assert last["masked_accuracy"] > 0.8 * rows["teacher"]["masked_accuracy"] > 0.1
    assert last["masked_bits"] < rows["student, converted"]["masked_bits"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 56))
    student = load_masked_lm(folder)
    assert student.config.pattern[0].mixer.type_name == "bidirectional"
    assert same_bits(nnx.split(load_encoder(folder / "export"))[1], nnx.split(student)[1])
    assert (folder / "export" / "tokenizer.json").is_file()
    assert "fill-mask" in (folder / "export" / "README.md").read_text()

    # With its teacher as a BERT of the hub, and stopped between the stages: the same student.
    theirs = load_masked_lm(folder / "teacher")
    config = load(DistillMaskedConfig, None, words(tmp_path, files, "whole"))
    tokenizer = prepare_for(config, 48, None, 264).tokenizer
    elsewhere = f"teacher.path={as_bert(theirs, tokenizer, tmp_path / 'bert')}"
    with tiny.stopped_after("student, after align", EncoderResults, monkeypatch):
        command(tmp_path, files, "stopped", elsewhere)
    assert command(tmp_path, files, "stopped", elsewhere, "checkpoint.resume=true") == 0
    again = json.loads((tmp_path / "stopped" / "report.json").read_text())
    assert again["models"][-1] == last
    assert tiny.contents(tmp_path / "stopped") == tiny.contents(folder)


def test_mistakes_are_named(tmp_path, files, capsys):
    for more, message in (
        (["seq_len=64"], "error: inputs: expected at most 48 tokens a row, got 64"),
        (
            ["student.mixer={type: mlp_mixer}"],
            "error: segment_ids: mlp_mixer mixes whole rows and takes neither packed documents nor padding",
        ),
        (["stages=[{type: orient}]"], 'error: stages.0.type: unknown masked_stage "orient" (known: align, cross_entr'),
        (["teacher.path=nowhere"], "error: teacher.path: expected the folder of a finished run or of the Hugging Face"),
    ):
        assert command(tmp_path, files, "wrong", *more) == 2
        line, *_ = capsys.readouterr().err.splitlines()
        assert line.startswith(message)
    assert not (tmp_path / "wrong").exists()


def test_losses_are_of_hidden_tokens_alone(tmp_path, files):
    """Cross-entropy and KL by hand; documents of a row do not see one another; a teacher loses nothing to itself."""
    config = load(DistillMaskedConfig, None, words(tmp_path, files, "losses", "data.tokenizer=bytes"))
    prepared = prepare_for(config, 48, None, 264)
    masking = Masking.of(config.masking, prepared.tokenizer)
    batch = {k: v for k, v in prepared.train.take(np.arange(4)).items() if k in ("tokens", "segment_ids")}
    key, params = jax.random.key(3), {}
    for name in ("teacher", "student"):
        graph, state = nnx.split(MaskedLM(config.teacher.model, rngs=nnx.Rngs(len(params))))
        rng = np.random.default_rng(len(params))
        params[name] = jax.tree.map(lambda x, rng=rng: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), state)
    rows = masking(batch, jax.random.split(key)[0])

    @jax.jit(compiler_options=FAST)
    def found():
        teacher, student = (nnx.merge(graph, params[name]) for name in ("teacher", "student"))
        logs = [jax.nn.log_softmax(model.head(transformed(model, rows))) for model in (teacher, student)]
        nothing = nnx.State({})
        plain = hiding(masking, hidden_tokens(graph))(params["student"], nothing, batch, key)
        apart = hiding(masking, hidden_logits(graph, graph, LogitLoss()))
        losses = [apart(params[name], nothing, batch, key, params["teacher"]) for name in ("student", "teacher")]
        tokens, documents = rows["inputs"][:1], jnp.where(jnp.arange(48) < 20, 1, 2)[None]
        alone = {"inputs": tokens[:, :20], "mask": documents[:, :20]}
        return (
            logs,
            plain,
            losses,
            transformed(student, alone),
            transformed(student, {"inputs": tokens, "mask": documents})[:, :20],
        )

    logs, plain, (apart, none), alone, packed = found()
    chosen = np.asarray(rows["chosen"]) > 0
    theirs, mine = (np.asarray(x, np.float64)[chosen] for x in logs)
    targets = np.asarray(rows["targets"])[chosen]
    assert float(plain[1]) == float(apart[1]) == chosen.sum() > 10
    assert_close(plain[0], -mine[np.arange(len(targets)), targets].sum(), TOL.f32_forward)
    assert_close(apart[0], (np.exp(theirs) * (theirs - mine)).sum(), TOL.f32_forward)
    assert abs(none[0]) < 1e-4
    assert_close(packed, np.asarray(alone), TOL.f32_forward)
