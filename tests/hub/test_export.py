"""Any language model goes out and comes back bit for bit, and ``effarch convert`` takes it anywhere."""

import jax
import numpy as np
import pytest
from flax import nnx

from effarch import registry
from effarch.cli import run as effarch
from effarch.config import UserError
from effarch.hub import load_lm, read_lm_config
from effarch.hub.export import config_json, export_lm, export_run
from effarch.hub.families import effarch as own
from effarch.hub.parameters import written
from effarch.hub.write import names_of, write_checkpoint
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LM, LMConfig, make_lm
from tests.models import tiny

CAUSAL = [name for name, cls in registry.configs("mixer").items() if cls.tiny()[0].causal]


def drawn(config: LMConfig, seed: int = 0) -> LM:
    """A model of numbers drawn at random, what is not trained too: nothing is compiled."""
    graph, variables = nnx.split(jax.eval_shape(lambda: make_lm(config)))
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: (9 * rng.normal(size=x.shape)).astype(x.dtype), variables))


def same(a: LM, b: LM) -> bool:
    return a.config == b.config and nnx.split(a)[0] == nnx.split(b)[0] and tiny.same_bits(a, b)


@pytest.mark.parametrize("name", CAUSAL)
def test_every_mixer_comes_back(name, tmp_path):
    lm = drawn(tiny.config(name, layers=2, dtype="bfloat16", tie_embeddings=False))
    assert export_lm(tmp_path / "out", lm, format="effarch") == "effarch"
    assert same(load_lm(tmp_path / "out"), lm)


def hybrid(**changes) -> LMConfig:
    return tiny.config("lightning", "hgrn2", "performer", layers=7, norm="layer", **changes)


@pytest.mark.parametrize(("dtype", "scan"), [("float32", True), ("bfloat16", False)])
def test_a_hybrid_comes_back_however_it_is_held(dtype, scan, tmp_path):
    lm = drawn(hybrid(param_dtype=dtype, scan_layers=scan))
    names = names_of(lm)
    assert {name.split(".")[1] for name in names if name.startswith("layers")} == set("0123456")
    tensors = written(lm, own.rules(lm.config, names))
    folder = write_checkpoint(tmp_path / "out", own.export(lm.config), tensors, shard_bytes=9999)
    assert (folder / "model.safetensors.index.json").exists()
    assert read_lm_config(folder) == lm.config
    assert same(load_lm(folder), lm)


def llama() -> LMConfig:
    block = BlockConfig(mixer=SoftmaxAttention(num_heads=4, num_kv_heads=2, head_dim=8), channel=SwiGLU(hidden=24))
    return LMConfig(vocab_size=48, dim=16, num_layers=3, pattern=(block,))


def test_formats_are_chosen_by_what_they_can_say():
    assert config_json(llama())["model_type"] == "llama"
    assert config_json(llama(), "effarch")["model_type"] == "effarch"
    for changed in ({"norm": "layer"}, {"logit_cap": 3.0}, {"embed_norm": True}):
        assert config_json(llama().replace(**changed))["model_type"] == "effarch"
    with pytest.raises(UserError, match="transformers has no model with lightning and these parameters") as error:
        config_json(tiny.config("lightning", layers=1), "transformers")
    assert len(error.value.lines) == 1
    with pytest.raises(UserError, match="got 'flaa'; did you mean \"fla\""):
        config_json(llama(), "flaa")


def test_convert_goes_there_and_back(tmp_path, capsys):
    lm = drawn(llama())
    export_lm(tmp_path / "a", lm, format="effarch", files={"tokenizer.json": b"{}"}, card="# A model")
    assert effarch(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'b'}: llama, 8,944 parameters in float32\n"
    assert effarch(["convert", str(tmp_path / "b"), str(tmp_path / "c"), "format=effarch"]) == 0
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ac"]
    assert files[0] == files[1] and set(files[0]) == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert effarch(["convert", str(tmp_path / "b"), str(tmp_path / "d"), "dtype=bfloat16"]) == 0
    assert load_lm(tmp_path / "d").config.param_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere", "new"], 'nowhere: expected a folder, or a name "owner/model"'),
        ([".", "new"], "expected config.json (a checkpoint) or checkpoints (a run) in it, found neither"),
        (["a", "a"], "a: expected a new or empty folder, it holds something"),
        (["a", "new", "format=fla"], "format: fla has no model with softmax_attention"),
        (["a", "new", "format=gguf"], "format: expected"),
        (["a"], "missing TARGET"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export_lm("a", drawn(llama()))
    assert effarch(["convert", *arguments]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_run_is_exported_anew_with_its_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for seed in (1, 2):
        lm = drawn(llama(), seed)
        assert export_run(tmp_path, lm) == tmp_path / "export"
        assert same(load_lm(tmp_path / "export"), lm)
        assert (tmp_path / "export" / "tokenizer.json").read_text() == "{}"
