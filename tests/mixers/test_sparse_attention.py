"""Sparse patterns by their definitions, said here anew: loops over documents, queries and heads in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.mixers import Context, LayerInfo, Progress
from effarch.mixers.bigbird import DRAWN, BigBird
from effarch.mixers.sparse_transformer import SparseTransformer
from tests.ops.attention_oracle import IDS, pattern
from tests.tolerances import TOL, assert_close

D, SIZES = 16, {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
STRIDE, SUMMARY, SIZE = 6, 2, 4
CONFIGS = {
    "strided": SparseTransformer(**SIZES, pattern="strided", stride=STRIDE),
    "fixed": SparseTransformer(**SIZES, pattern="fixed", stride=STRIDE, summary=SUMMARY),
    "bigbird": BigBird(**SIZES, block_size=SIZE, window=2, random=2),
}
DRAWS = np.asarray(CONFIGS["bigbird"].make(D, layer=LayerInfo(), rngs=nnx.Rngs(0)).drawn[...])


def random_blocks(own, head):
    """Of the blocks between the first and the window, one from each of two halves."""
    between, found = own - 2, []
    for part in range(2):
        start, end = between * part // 2, between * (part + 1) // 2
        if end > start:
            found.append(1 + start + DRAWS[own, head, part] % (end - start))
    return found


SEES = {
    "strided": lambda h, i, j: j <= i and (i - j < STRIDE or (i - j) % STRIDE == 0),
    "fixed": lambda h, i, j: j <= i and (i // STRIDE == j // STRIDE or j % STRIDE in (STRIDE - 2, STRIDE - 1)),
    "bigbird": lambda h, i, j: j <= i and j // SIZE in {i // SIZE, i // SIZE - 1, 0, *random_blocks(i // SIZE, h // 2)},
}


def made(name):
    """``(mixer, x, q, k, v, y)``, y by the definition."""
    config = CONFIGS[name]
    mixer = jax.jit(lambda: config.make(D, layer=LayerInfo(), rngs=nnx.Rngs(2)))()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(*IDS.shape, D)), jnp.float32)
    ctx, _ = Context.of(*IDS.shape, segment_ids=jnp.asarray(IDS))

    @jax.jit
    def heads(x):
        q, k, v = mixer.project(x)
        return mixer.rotate(q, ctx), mixer.rotate(k, ctx), v

    o = pattern(*heads(x), IDS, SEES[name])
    return mixer, x, np.einsum("bthk,hkd->btd", o, mixer.qkv.o.kernel[...])


def run(mixer, form="chunkwise"):
    """``(x, ids, state, progress) -> (y, state, progress)``, compiled."""

    def step(x, ids, state=None, progress=None):
        ctx, after = Context.of(*x.shape[:2], segment_ids=ids, progress=progress, form=form)
        y, state, _ = mixer(x, state, ctx)
        return y, state, after

    return jax.jit(step)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_the_definition(name):
    mixer, x, y = made(name)
    found = np.asarray(run(mixer)(x, jnp.asarray(IDS))[0])
    assert_close(found * (IDS > 0)[..., None], y, TOL.f32_forward)


@pytest.mark.parametrize("name", ["fixed", "bigbird"])
def test_decoding_reads_what_the_definition_says(name):
    """After a prefill that ends inside a block, in documents that began before it."""
    mixer, x, y = made(name)
    ids, cut, step = jnp.asarray(IDS), 25, run(mixer)
    state, progress = mixer.init_state(len(IDS), 45), Progress.start(len(IDS))
    found, state, progress = step(x[:, :cut], ids[:, :cut], state, progress)
    found = [found]
    for t in range(cut, 45):
        one, state, progress = step(x[:, t : t + 1], ids[:, t : t + 1], state, progress)
        found.append(one)
    assert_close(np.concatenate(found, axis=1) * (IDS > 0)[..., None], y, TOL.f32_forward)


def test_gradients_of_the_fixed_pattern_are_those_of_the_mask():
    """The strided one is in tests/conformance."""
    with jax.enable_x64(True):
        mixer, x, _ = made("fixed")
        x, weight = x.astype(jnp.float64), np.random.default_rng(1).normal(size=x.shape) * (IDS > 0)[..., None]
        runs = [run(mixer, form) for form in ("chunkwise", "parallel")]
        pulled = [jax.grad(lambda x, run=run: (run(x, jnp.asarray(IDS))[0] * weight).sum())(x) for run in runs]
    assert pulled[0].dtype == jnp.float64
    assert_close(*pulled, TOL.f64)


@pytest.mark.parametrize(("window", "random"), [(1, 3), (2, 0), (3, 3), (4, 5)])
def test_bigbird_sees_each_block_once(window, random):
    """The window, the first and as many random ones as there are; others for other heads and layers."""
    config = BigBird(num_heads=4, num_kv_heads=4, head_dim=4, window=window, random=random)
    first, second = (config.make(D, layer=LayerInfo(index=i, count=2), rngs=nnx.Rngs(0)) for i in range(2))
    owns = [*range(30), DRAWN - 1, DRAWN, 5000]
    lists = np.asarray(first.lists(jnp.asarray(owns, jnp.int32)))
    for own, of_heads in zip(owns, lists, strict=True):
        near, between = set(range(max(0, own - window + 1), own)), range(1, own - window + 1)
        for entries in of_heads:
            entries = entries[entries >= 0].tolist()
            assert len(entries) == len(set(entries)) == min(own, window + random)
            rest = set(entries) - near - ({0} if own else set())
            assert near <= set(entries) and (own == 0 or 0 in entries) and rest <= set(between)
            assert len(rest) == min(random, len(between))
    if random:
        assert (lists[-1, 0] != lists[-1, 1]).any()
        assert (np.asarray(second.lists(jnp.asarray(owns, jnp.int32))) != lists).any()
