"""Released recurrent models: read, computed, and written as the code they come from has them."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from effarch.cli import run as effarch
from effarch.config import UserError
from effarch.hub import load_lm, read_lm_config
from effarch.hub.export import config_json, export_lm, same_function
from effarch.hub.families import effarch as own
from effarch.hub.families import rwkv
from effarch.hub.folder import find_tensors
from effarch.hub.parameters import written
from effarch.hub.write import names_of, write_checkpoint
from effarch.mixers.gla import GLA
from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import RWKV7Channel
from effarch.mixers.softmax_attention import SoftmaxAttention
from tests.golden import whole
from tests.hub import released
from tests.hub.test_export import drawn, same
from tests.models.tiny import FAST
from tests.tolerances import TOL, assert_close

fla = pytest.mark.parametrize("name", released.CASES)


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def logits(graph, state, tokens):
    return nnx.merge(graph, state)(tokens)[0]


def folder_of(stored: released.Stored, path):
    """A checkpoint of theirs."""
    return write_checkpoint(path, stored.config, ((n, released.draw(n, shape)) for n, shape in stored.shapes.items()))


@fla
def test_a_model_of_fla_is_read_computed_and_written(name, tmp_path):
    stored = released.stored(name)
    folder = folder_of(stored, tmp_path / "in")
    lm = load_lm(folder)
    assert same_function(lm.config, released.CASES[name])
    assert_close(logits(*nnx.split(lm), released.TOKENS), stored.logits, TOL.f32_forward)
    assert export_lm(tmp_path / "out", lm) == name
    before, after = (find_tensors(tmp_path / where) for where in ("in", "out"))
    assert set(before) == set(after)
    assert all(before[name].read().tobytes() == after[name].read().tobytes() for name in before)


@fla
def test_what_is_exported_is_what_their_class_was_made_of(name):
    assert config_json(released.CASES[name]) == released.stored(name).config


@pytest.mark.oracle
@fla
def test_their_class_and_its_kernels_still_say_so(name, tmp_path):
    """In a process of its own: with Triton's interpreter chosen, transformers would run its own models on it, too."""
    if any(importlib.util.find_spec(package) is None for package in ("torch", "transformers", "triton", "fla")):
        pytest.skip("needs the extra `oracles` and Triton")
    command = [sys.executable, "-m", "tests.hub.released", str(tmp_path), name]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env={**os.environ, "TRITON_INTERPRET": "1"})
    made, stored = released.stored(name, tmp_path), released.stored(name)
    assert (made.config, made.shapes) == (stored.config, stored.shapes)
    assert_close(made.logits, stored.logits, TOL.f32_forward)


GLA_13B = {  # as fla-hub has it
    "architectures": ["GLAForCausalLM"],
    "attn_mode": "chunk",
    "bos_token_id": 1,
    "clamp_min": None,
    "conv_size": 4,
    "elementwise_affine": True,
    "eos_token_id": 2,
    "expand_k": 0.5,
    "expand_v": 1,
    "feature_map": None,
    "fuse_cross_entropy": True,
    "hidden_act": "swish",
    "hidden_ratio": 4,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": None,
    "max_position_embeddings": 2048,
    "model_type": "gla",
    "norm_eps": 1e-06,
    "num_heads": 4,
    "num_hidden_layers": 24,
    "num_kv_heads": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_gk": True,
    "use_gv": False,
    "use_output_gate": True,
    "use_short_conv": False,
    "vocab_size": 32000,
}


def read(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_lm_config(tmp_path)


def test_sizes_that_a_config_leaves_to_the_code(tmp_path):
    config = read(tmp_path, GLA_13B)
    assert config.pattern[0].mixer == GLA(num_heads=4, head_dim=256, value_head_dim=512)
    assert config.pattern[0].channel.hidden == 5632


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"use_short_conv": True}, "use_short_conv: expected False, got True"),
        ({"feature_map": "relu"}, "feature_map: expected None, got 'relu'"),
        ({"num_kv_heads": 2}, "num_kv_heads: expected None or 4, got 2"),
        ({"expand_k": 0.3}, "expand_k: expected 4 heads to divide"),
        ({"clamp_min": -3.0}, "clamp_min: expected None"),
        ({"attn": {"layers": [24], "num_heads": 4}}, "layers: expected numbers below 24, got 24"),
        ({"attn": {"layers": [1], "num_heads": 4, "window_size": 8}}, "window_size: expected None, got 8"),
        ({"attn": {"layers": [1], "num_heads": 4, "qk_norm": True}}, "unknown field qk_norm = True"),
        ({"new": 1}, "unknown field new = 1"),
    ],
)
def test_what_ours_does_not_compute_is_refused(change, expected, tmp_path):
    with pytest.raises(UserError, match=expected) as error:
        read(tmp_path, GLA_13B | change)
    assert len(error.value.lines) == 1


def test_attention_in_some_layers_makes_a_pattern(tmp_path):
    config = read(tmp_path, GLA_13B | {"attn": [{"layers": list(range(3, 24, 4)), "num_heads": 16}]})
    assert [type(block.mixer) for block in config.pattern] == [GLA, GLA, GLA, SoftmaxAttention]


@pytest.mark.parametrize("name", ["rwkv5", "rwkv6", "rwkv7"])
def test_rwkv_as_its_authors_publish_it(name, tmp_path):
    """Logits are those of the golden tests, which read by the same rules."""
    case, stored = whole.load(name), whole.stored(name)
    tensors = whole.weights(name, stored.shapes)
    if name == "rwkv7":  # some files have what the first layer does not use
        tensors |= {f"blocks.0.att.v{i}": np.zeros(3, np.float32) for i in range(3)}
    folder = write_checkpoint(tmp_path / "in", {}, tensors.items())
    (folder / "config.json").unlink()
    for source in (folder, folder / "model.safetensors"):
        lm = load_lm(source)
        assert same_function(lm.config, case.config)
    names = names_of(lm)
    expected = whole.by_rules(rwkv.rules(lm.config, names), tensors)
    for ours, x in written(lm, own.rules(lm.config, names)):
        np.testing.assert_array_equal(x, np.asarray(expected[ours], x.dtype))


def test_rwkv4_has_no_heads(tmp_path):
    stored = whole.stored("rwkv4").shapes
    config = {
        "model_type": "rwkv",
        "vocab_size": 48,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
    }
    lm = load_lm(write_checkpoint(tmp_path / "in", config, whole.weights("rwkv4", stored).items()))
    theirs = whole.load("rwkv4").config
    assert lm.config.pattern[0].mixer.width == 32 and lm.config.pattern[0].channel == theirs.pattern[0].channel


def test_pickles_of_rwkv_are_refused_with_advice(tmp_path):
    for magic in (b"PK\x03\x04", b"\x80\x02"):
        (tmp_path / "x.pth").write_bytes(magic + bytes(40))
        with pytest.raises(UserError, match="x.pth: is a pickle, which could run any code") as error:
            load_lm(tmp_path / "x.pth")
        assert len(error.value.lines) == 1 and "safetensors" in str(error.value)


def test_other_tensors_without_a_config_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "in", {}, [("a", np.zeros(3, np.float32))])
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: cannot be read: No such file"):
        load_lm(folder)


def test_rwkv7_goes_from_the_authors_file_to_fla(tmp_path, capsys):
    mixer = RWKV7(num_heads=2, head_dim=64, rank_w=3, rank_a=4, rank_v=5, rank_g=6)
    lm = drawn(rwkv.lm_config(11, 128, 2, mixer, RWKV7Channel(hidden=40)))
    folder = write_checkpoint(tmp_path / "in", {}, written(lm, rwkv.rules(lm.config, names_of(lm))))
    (folder / "config.json").unlink()
    assert effarch(["convert", str(folder / "model.safetensors"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: rwkv7, ")
    assert same(load_lm(tmp_path / "out"), lm)


mamba = pytest.mark.parametrize(("model_type", "name"), [("mamba", "mamba1"), ("mamba2", "mamba2")])


@mamba
def test_mamba_goes_out_as_transformers_has_it(model_type, name, tmp_path):
    lm = drawn(whole.load(name).config)
    assert export_lm(tmp_path / "out", lm) == model_type
    assert same(load_lm(tmp_path / "out"), lm)
    found = {name: tensor.shape for name, tensor in find_tensors(tmp_path / "out").items()}
    assert found == whole.stored(name).shapes


@pytest.mark.oracle
@mamba
def test_transformers_loads_the_mamba_that_we_write(model_type, name, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `oracles`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `oracles`")
    stored = whole.stored(name)
    lm = whole.model(name, whole.weights(name, stored.shapes))
    export_lm(tmp_path / "out", lm)
    # By name: the Auto class makes a model of fla once that is imported.
    theirs = {"mamba": transformers.MambaForCausalLM, "mamba2": transformers.Mamba2ForCausalLM}
    model, said = theirs[model_type].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    with torch.no_grad():
        tokens = torch.tensor(whole.tokens(lm.config)).long()
        assert_close(model.eval()(input_ids=tokens, use_cache=False).logits.numpy(), stored.logits, TOL.f32_forward)
