"""Whole models against independent code: the same random weights in both give the same logits.

A case is one file, ``models/<name>.py``, with

    config                        our LMConfig: two layers, two heads or more, small
    shapes() -> dict              the independent model's tensors, name -> shape (may import torch)
    independent(weights, tokens)  its logits [B, T, vocab], from numpy to numpy (imports torch)
    parameters(weights) -> dict   our parameters, path -> array, made of the independent model's tensors; paths as in
                                  the model with every layer apart, ``layers.<i>.mixer...`` (:func:`paths` has them all)
    weight(name, x) -> array      optional: moves a drawn tensor to where it does something (slow decays, for example)

``python -m tests.golden.make_models [name ...]`` with the extra ``oracles`` writes ``models/<name>.npz``: logits, and
names and shapes of the tensors. No weight is stored: both sides draw each tensor from a generator that its name seeds
(:func:`draw`), so that the default suite needs neither torch nor large files. Every tensor of the independent model
must be read, every parameter of ours set, and sizes must be equal: what one side lacks cannot hide.

    drawn = whole.weights(name, whole.stored(name).shapes)
    lm = whole.model(name, drawn)
"""

import dataclasses
import importlib
import json
import zlib
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from effarch.models.lm import LM, LMConfig, make_lm

FOLDER = Path(__file__).parent / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
BATCH, TIME = 2, 40  # more than one chunk of 32


def load(name: str):
    """The module of a case."""
    return importlib.import_module(f"tests.golden.models.{name}")


def tokens(config: LMConfig) -> np.ndarray:
    """``[B, T]`` random ids."""
    return np.random.default_rng(7).integers(0, config.vocab_size, (BATCH, TIME), dtype=np.int32)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor: normal, of variance 1 / its last dimension; vectors (norms, mixes, biases) about 1/2, either sign."""
    x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    vector = sum(n > 1 for n in shape) < 2
    return (0.5 + 0.3 * x if vector else x * shape[-1] ** -0.5).astype(np.float32)


def weights(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All tensors of the independent model."""
    adjust = getattr(load(name), "weight", lambda key, x: x)
    return {key: np.asarray(adjust(key, draw(key, shape)), np.float32) for key, shape in shapes.items()}


class _Read(dict):
    """A dict that knows which of its keys were asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.unread = set(self)

    def __getitem__(self, key):
        self.unread.discard(key)
        return super().__getitem__(key)


def _path(path) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value").replace("stack.prefix.", "layers.")


def _abstract(config: LMConfig):
    """The graph of our model, its parameters with their paths, how they are put together again, and what is fixed."""
    make = partial(make_lm, config.replace(scan_layers=False))
    graph, params, fixed = nnx.split(jax.eval_shape(make), nnx.Param, ...)
    if jax.tree.leaves(fixed):
        fixed = jax.jit(lambda: nnx.split(make(), nnx.Param, ...)[2])()
    leaves, tree = jax.tree.flatten_with_path(params)
    return graph, {_path(path): leaf for path, leaf in leaves}, tree, fixed


def paths(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of ours."""
    return {path: leaf.shape for path, leaf in _abstract(config)[1].items()}


def model(name: str, weights: dict[str, np.ndarray]) -> LM:
    """Our model with the independent model's weights.

    Raises:
      ValueError: a tensor is not read, a parameter not set, or a size differs.
    """
    case = load(name)
    theirs = _Read(weights)
    ours = case.parameters(theirs)
    graph, expected, tree, fixed = _abstract(case.config)
    sizes = {path: np.size(ours[path]) for path in expected if path in ours}
    wrong = {
        "tensors that are not read": theirs.unread,
        "parameters that are not set": set(expected) - set(ours),
        "parameters that do not exist": set(ours) - set(expected),
        "sizes that differ": {path for path, size in sizes.items() if size != expected[path].size},
    }
    if any(wrong.values()):
        raise ValueError(f"{name}: " + "; ".join(f"{what}: {sorted(which)}" for what, which in wrong.items() if which))
    leaves = [np.asarray(ours[path], np.float32).reshape(leaf.shape) for path, leaf in expected.items()]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), fixed)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What is committed of a case."""

    logits: np.ndarray
    shapes: dict[str, tuple[int, ...]]


def file(name: str) -> Path:
    """The golden file of a case."""
    return FOLDER / f"{name}.npz"


def stored(name: str) -> Stored:
    """The golden file, read."""
    with np.load(file(name)) as found:
        shapes = json.loads(str(found["shapes"]))
        return Stored(found["logits"], {key: tuple(shape) for key, shape in shapes.items()})


def make(name: str) -> Stored:
    """What the independent code says now."""
    case = load(name)
    shapes = {key: tuple(map(int, shape)) for key, shape in case.shapes().items()}
    logits = case.independent(weights(name, shapes), tokens(case.config))
    return Stored(np.asarray(logits, np.float32), shapes)


def save(name: str, made: Stored) -> None:
    """Writes the golden file."""
    np.savez_compressed(file(name), logits=made.logits, shapes=np.asarray(json.dumps(made.shapes)))
