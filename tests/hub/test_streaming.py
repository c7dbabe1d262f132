"""Loading takes little more memory than the checkpoint is large, and puts every parameter where it belongs."""

import json
import subprocess
import sys

import jax
import numpy as np

from effarch.hub import load_lm, save_lm
from effarch.hub.families import llama
from effarch.models.lm import LMConfig, make_lm
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from tests.hub.test_roundtrip import tiny

CHILD = """
import json, re, sys
from pathlib import Path
import jax
from effarch.hub import load_lm

def told(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

jax.block_until_ready(jax.numpy.zeros(8))
load_lm(sys.argv[1])  # what loading a checkpoint of two small layers imports and compiles is not the checkpoint's
before = told("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
lm = jax.block_until_ready(load_lm(sys.argv[2]))
print(json.dumps({"peak": told("VmHWM") - before, "held": sum(x.nbytes for x in jax.tree.leaves(lm))}))
"""


def shaped(**changes) -> LMConfig:
    config = tiny(dtype="bfloat16", param_dtype="bfloat16")
    (block,) = config.pattern
    mixer = block.mixer.replace(num_heads=8, num_kv_heads=4, head_dim=64)
    block = block.replace(mixer=mixer, channel=block.channel.replace(hidden=1408))
    return config.replace(dim=512, pattern=(block,), vocab_size=8000, num_layers=24).replace(**changes)


def test_the_peak_of_memory_is_hardly_more_than_the_checkpoint(tmp_path):
    for name, config in (("small", tiny(num_layers=2)), ("large", shaped())):
        save_lm(tmp_path / name, jax.jit(lambda c=config: make_lm(c))(), llama.export(config))
    command = [sys.executable, "-c", CHILD, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert 1e8 < size and found["held"] > 0.99 * size
    assert found["peak"] <= 1.3 * size, found["peak"] / size


def test_parameters_are_sharded_as_they_are_read(tmp_path):
    lm = jax.jit(lambda: make_lm(tiny(vocab_size=64), 1))()
    save_lm(tmp_path / "out", lm, llama.export(lm.config))
    rules = make_rules(make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    split = load_lm(tmp_path / "out", rules=rules)
    table = split.embedding.table[...]
    assert len(table.addressable_shards) == 8 and table.addressable_shards[0].data.size * 8 == table.size
    for mine, theirs in zip(jax.tree.leaves(lm), jax.tree.leaves(split), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
