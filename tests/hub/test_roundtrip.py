"""A model goes out and comes back bit for bit; what is wrong with a folder is said before anything is read."""

import json

import jax
import numpy as np
import pytest

from effarch.config import UserError
from effarch.hub import load_lm, read_lm_config, save_lm
from effarch.hub.families import llama
from effarch.hub.parameters import written
from effarch.hub.write import names_of, write_checkpoint
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig, make_lm


def tiny(**changes) -> LMConfig:
    block = BlockConfig(mixer=SoftmaxAttention(num_heads=4, num_kv_heads=2, head_dim=8), channel=SwiGLU(hidden=24))
    return LMConfig(vocab_size=48, dim=16, num_layers=3, pattern=(block,)).replace(**changes)


@pytest.fixture(scope="module")
def lm():
    return jax.jit(lambda: make_lm(tiny(), 1))()


@pytest.fixture
def folder(lm, tmp_path):
    return save_lm(tmp_path / "out", lm, llama.export(lm.config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_a_model_comes_back_bit_for_bit(dtype, shard_bytes, tmp_path):
    config = tiny(dtype=dtype, param_dtype=dtype, tie_embeddings=False)
    lm = jax.jit(lambda: make_lm(config, 1))()
    tensors = written(lm, llama.rules(config, names_of(lm)))
    folder = write_checkpoint(tmp_path / "out", llama.export(config), tensors, shard_bytes=shard_bytes)
    assert (folder / "model.safetensors.index.json").exists() is (shard_bytes == 4000)
    back = load_lm(folder)
    assert back.config == config
    for mine, theirs in zip(jax.tree.leaves(lm), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hidden_act": "relu"}, "hidden_act: expected 'silu' or .*, got 'relu', which is not supported"),
        ({"unheard_of": 3}, "unknown field unheard_of = 3"),
        ({"model_type": "lama"}, "got 'lama'; did you mean \"llama\""),
        ({"hidden_size": "16"}, "hidden_size: expected int, got '16'"),
        ({"rope_theta": 5.0}, "rope_theta 5.0 contradicts"),
        ({"num_key_value_heads": 3}, "num_kv_heads: expected a divisor"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    ],
)
def test_a_config_that_we_cannot_honour_is_refused(change, expected, folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=expected) as error:
        read_lm_config(folder)
    assert len(error.value.lines) == 1


def test_tensors_that_contradict_the_config_are_named(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 25, "num_hidden_layers": 2}))
    with pytest.raises(UserError) as error:
        load_lm(folder)
    assert "gate_proj.weight: expected shape [25, 16], got [24, 16]" in str(error.value)
    assert "more such tensors" in error.value.lines[-1]


def test_nothing_is_written_over_and_nothing_half(lm, folder):
    with pytest.raises(UserError, match="expected a new or empty folder"):
        save_lm(folder, lm, llama.export(lm.config))

    def breaks():
        yield "a", np.zeros(3, np.float32)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write_checkpoint(folder.parent / "half", {}, breaks())
    assert sorted(p.name for p in folder.parent.iterdir()) == ["out"]
