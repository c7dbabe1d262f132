"""A tiny language model with scanned layers, a buffer and noise; its loss, its data, and a whole run of it."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch import axes
from effarch.parallel import sharding
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from effarch.training import checkpoint, optimizer, state, step
from effarch.typing import PyTree

WHOLE = MeshConfig()
VOCAB, WIDTH, LAYERS, ROWS, LENGTH = 16, 8, 3, 16, 6


class Layer(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.w = nnx.Param(0.3 * jax.random.normal(rngs.params(), (width, 2 * width)), axes=("embed", "mlp"))
        self.v = nnx.Param(0.3 * jax.random.normal(rngs.params(), (2 * width, width)), axes=("mlp", "embed"))
        self.b = nnx.Param(jnp.zeros((2 * width,)), axes=("mlp",))


class Toy(nnx.Module):
    def __init__(self, width: int = WIDTH, *, rngs: nnx.Rngs):
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (VOCAB, width)), axes=("vocab", "embed"))
        self.gain = nnx.Param(jnp.ones((width,)), axes=("embed",))
        self.layers = jax.vmap(lambda r: Layer(width, rngs=r))(rngs.split(LAYERS))
        self.features = nnx.Variable(jax.random.normal(rngs.params(), (width, width)))

    def __call__(self, tokens):
        def body(h, layer):
            u = jnp.tanh(h @ layer.w[...] + layer.b[...][None, None])
            return axes.constrain(h + u @ layer.v[...], "batch", "time", "embed"), None

        h = axes.constrain(self.embed[...][tokens], "batch", "time", "embed")
        h, _ = jax.lax.scan(body, h @ self.features[...], self.layers)
        return (h * self.gain[...][None, None]) @ self.embed[...].T


@functools.cache
def graphdef(width: int = WIDTH):
    return nnx.split(nnx.eval_shape(lambda: Toy(width, rngs=nnx.Rngs(0))), nnx.Param, ...)[0]


def loss_fn(params, rest, batch, rng, noise: float = 0.0):
    """Next-token cross-entropy; id 0 is padding."""
    tokens, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    logits = nnx.merge(graphdef(rest["features"].shape[0]), params, rest)(tokens)
    logits = logits + noise * jax.random.normal(rng, logits.shape)
    mask = (targets != 0).astype(jnp.float32)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    return (nll * mask).sum(), mask.sum(), {"accuracy": (right * mask).sum()}


def batch_at(seed: int, n: int) -> dict[str, np.ndarray]:
    """Batch ``n``: rows of different lengths, so that micro-batches weigh differently."""
    rng = np.random.default_rng((seed, n))
    tokens = rng.integers(1, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    tokens[np.arange(LENGTH + 1)[None] >= rng.integers(2, LENGTH + 2, (ROWS, 1))] = 0
    return {"tokens": tokens}


@dataclasses.dataclass(frozen=True)
class Setup:
    tx: object
    rules: axes.Rules
    abstract: state.TrainState
    make: object
    shardings: state.TrainState

    def init(self) -> state.TrainState:
        return sharding.init_sharded(self.make, self.shardings)

    def compiled(self, **kwargs):
        noise = kwargs.pop("noise", 0.0)
        made = step.make_step(functools.partial(loss_fn, noise=noise), self.tx, **kwargs)
        return step.jit_step(made, self.shardings, self.rules)


@functools.cache
def setup(mesh: MeshConfig = WHOLE, devices: int = 1, width: int = WIDTH, steps: int = 20, **options) -> Setup:
    """A toy to train; cached, so that tests share what is compiled."""
    options = {"learning_rate": 0.01, "warmup_steps": 2, **options}
    tx, _ = optimizer.make_optimizer(optimizer.OptimizerConfig(**options), steps)
    rules = make_rules(make_mesh(mesh, jax.devices()[:devices]))

    def make():
        _, params, rest = nnx.split(Toy(width, rngs=nnx.Rngs(0)), nnx.Param, ...)
        return state.make_state(params, rest, tx, seed=0)

    abstract = state.abstract_state(make, tx, rules)
    return Setup(tx, rules, abstract, make, jax.tree.map(lambda x: x.sharding, abstract))


def digest(tree: PyTree) -> str:
    """Of every name, dtype and bit."""
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
        found.update(np.asarray(x).tobytes())
    return found.hexdigest()


def same_bits(a: PyTree, b: PyTree) -> bool:
    return digest(a) == digest(b)


def train(folder: Path, steps: int, every: int, report=print) -> str:
    """Trains, continuing from what is in ``folder``; the digest of the final state and of the data position."""
    run = setup(MeshConfig(fsdp=2), 2, steps=steps)
    advance = run.compiled(noise=0.1, grad_accum=2)
    with checkpoint.Checkpoints(folder, every=every, keep=2) as saved:
        last = saved.latest()
        if last is None:
            now, (epoch, n) = run.init(), (0, 0)
        else:
            now, (epoch, n), _ = saved.restore(last, run.abstract)
        report(f"start {0 if last is None else last}")
        for i in range(int(now.step) + 1, steps + 1):
            now, metrics = advance(now, sharding.put_batch(batch_at(epoch, n), run.rules))
            epoch, n = (epoch, n + 1) if n < 6 else (epoch + 1, 0)
            saved.save(i, now, (epoch, n), {"config": "a: 1\n"}, force=i == steps)
            report(f"step {i} {float(metrics['loss'])!r} {digest(now.rng)[:8]}")
    return f"{digest(now)} {epoch} {n}"
