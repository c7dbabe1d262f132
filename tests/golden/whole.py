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
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.hub.rules import Rule
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


def by_rules(rules: Iterable[Rule], weights: Mapping) -> dict:
    """Our parameters by the rules of a format of the hub."""
    return {
        name: x
        for rule in rules
        for name, x in zip(rule.ours, rule.read(*(weights[theirs] for theirs in rule.theirs)), strict=True)
    }


def _path(path) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name.removesuffix(".value").replace("stack.prefix.", "layers.")


def _abstract(make: Callable[[], nnx.Module]):
    """The graph of a module, its parameters by their paths, how they are put together again, and what is fixed."""
    graph, params, fixed = nnx.split(jax.eval_shape(make), nnx.Param, ...)
    if jax.tree.leaves(fixed):
        fixed = jax.jit(lambda: nnx.split(make(), nnx.Param, ...)[2])()
    leaves, tree = jax.tree.flatten_with_path(params)
    return graph, {_path(path): leaf for path, leaf in leaves}, tree, fixed


def _apart(config: LMConfig) -> Callable[[], LM]:
    return partial(make_lm, config.replace(scan_layers=False))


def paths(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of ours."""
    return {path: leaf.shape for path, leaf in _abstract(_apart(config))[1].items()}


def filled(make: Callable[[], nnx.Module], parameters: Callable[[Mapping], Mapping], weights: Mapping) -> nnx.Module:
    """A module of ours with the independent one's weights.

    Args:
      make: initialises ours; only its shapes are taken. parameters: as in a case. weights: of the independent one.

    Raises:
      ValueError: a tensor is not read, a parameter not set, or a size differs.
    """
    theirs = _Read(weights)
    ours = parameters(theirs)
    graph, expected, tree, fixed = _abstract(make)
    sizes = {path: math.prod(ours[path].shape) for path in expected if path in ours}
    wrong = {
        "tensors that are not read": theirs.unread,
        "parameters that are not set": set(expected) - set(ours),
        "parameters that do not exist": set(ours) - set(expected),
        "sizes that differ": {path for path, size in sizes.items() if size != expected[path].size},
    }
    if any(wrong.values()):
        raise ValueError("; ".join(f"{what}: {sorted(which)}" for what, which in wrong.items() if which))
    leaves = [jnp.asarray(ours[path], jnp.float32).reshape(leaf.shape) for path, leaf in expected.items()]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), fixed)


def model(name: str, weights: Mapping[str, np.ndarray]) -> LM:
    """Our model with the independent model's weights; see :func:`filled`."""
    case = load(name)
    return filled(_apart(case.config), case.parameters, weights)


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
