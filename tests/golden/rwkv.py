"""What the cases of RWKV-5 to RWKV-7 share: a tiny model, the names of the authors' files, their package.

Names and shapes are those of :mod:`effarch.hub.families.rwkv`, which reads these files.
"""

import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from unittest import mock

from flax import nnx

from effarch.hub.families import rwkv as files
from effarch.hub.rules import Rule
from effarch.mixers.base import LayerInfo, MixerConfig
from effarch.models.lm import LMConfig
from tests.golden import whole

VOCAB, DIM, LAYERS, HEADS, HIDDEN = 48, 32, 2, 4, 64
HEAD = (HEADS, DIM // HEADS)
OURS, THEIRS = "layers.1.mixer.", "blocks.1.att."  # the second layer's time mix


def config(mixer: MixerConfig, channel: type) -> LMConfig:
    """Two layers."""
    return files.lm_config(VOCAB, DIM, LAYERS, mixer, channel(hidden=HIDDEN))


@lru_cache
def rules(config: LMConfig) -> tuple[Rule, ...]:
    """The format."""
    return tuple(files.rules(config, whole.paths(config)))


def shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """``shapes`` of a case."""
    return {name: shape for rule in rules(config) for name, shape in zip(rule.theirs, rule.shapes, strict=True)}


def parameters(config: LMConfig, w: Mapping):
    """``parameters`` of a case."""
    return whole.by_rules(rules(config), w)


def time_mix_weights(config: LMConfig, weight: Callable):
    """Tensors of the second layer's time mix, by their names below it."""
    found = {name.removeprefix(THEIRS): x for name, x in shapes(config).items() if name.startswith(THEIRS)}
    return {name: weight(name, whole.draw(name, shape)) for name, shape in found.items()}


def time_mix(config: LMConfig, w: Mapping):
    """Our module, as of the second layer, with those tensors."""

    def make():
        layer = LayerInfo(index=1, count=LAYERS, first=False)
        return config.pattern[0].mixer.make(DIM, layer=layer, rngs=nnx.Rngs(0))

    def ours(w: Mapping):
        inside = [rule for rule in rules(config) if rule.ours[0].startswith(OURS)]
        full = {THEIRS + name: w[name] for name in w}
        return {name.removeprefix(OURS): x for name, x in whole.by_rules(inside, full).items()}

    return whole.filled(make, ours, w)


@contextlib.contextmanager
def _in_its_world(goose: bool):
    """The variables that the package reads, and not what it prints."""
    said = {"RWKV_V7_ON": "1" if goose else "0", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    with mock.patch.dict(os.environ, said), contextlib.redirect_stdout(io.StringIO()):
        yield


def package(*, goose: bool):
    """The authors' ``rwkv`` package as a module of its own: it is either for RWKV-7 (``goose``) or for RWKV-4 to 6."""
    path = Path(importlib.util.find_spec("rwkv").origin).parent / "model.py"
    spec = importlib.util.spec_from_file_location(f"rwkv_{'7' if goose else '4_to_6'}", path)
    module = importlib.util.module_from_spec(spec)
    with _in_its_world(goose):
        spec.loader.exec_module(module)
    return module


def logits(weights, tokens, *, goose: bool):
    """``[B, T, vocab]`` of the package in float32 on the CPU; row by row, as it knows no batches."""
    import torch

    module = package(goose=goose)
    with tempfile.TemporaryDirectory() as folder, _in_its_world(goose):
        torch.save({name: torch.tensor(x) for name, x in weights.items()}, f"{folder}/tiny.pth")
        model = module.RWKV(f"{folder}/tiny", "cpu fp32")
        rows = [model.forward(row.tolist(), None, full_output=True)[0] for row in tokens]
    return torch.stack(rows).numpy()
