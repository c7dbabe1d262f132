"""Our models with the weights of independent ones: the same logits, however the text is cut (``whole.py``)."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden import whole
from tests.tolerances import TOL, assert_close

FAST = {"xla_backend_optimization_level": 0}  # compiling is what these tests spend their time on
CUTS = {"whole": (whole.TIME,), "pieces": (23, 17), "token by token": (1,) * whole.TIME}

cases = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"models-{name}")) for name in whole.NAMES]
)


@lru_cache
def split(name: str):
    """Graph and parameters of our model."""
    return nnx.split(whole.model(name, whole.weights(name, whole.stored(name).shapes)))


@partial(jax.jit, static_argnums=(0, 1), compiler_options=FAST)
def logits(graph, form, params, tokens, state, segment_ids=None):
    return nnx.merge(graph, params)(tokens, state, form=form, segment_ids=segment_ids)


@cases
@pytest.mark.parametrize("cut", CUTS)
def test_logits_are_those_of_independent_code(name, cut):
    """Training's path without a state, prefill in pieces, decoding."""
    graph, params = split(name)
    tokens = whole.tokens(whole.load(name).config)
    state = None if cut == "whole" else nnx.merge(graph, params).init_state(whole.BATCH, whole.TIME)
    form = "recurrent" if cut == "token by token" else "chunkwise"
    found, start = [], 0
    for length in CUTS[cut]:
        piece, state = logits(graph, form, params, tokens[:, start : start + length], state)
        found.append(piece)
        start += length
    assert_close(jnp.concatenate(found, axis=1), whole.stored(name).logits, TOL.f32_forward)


@cases
def test_packed_documents_are_separate_texts(name):
    """Both rows in one, padding before and between them."""
    graph, params = split(name)
    rows = whole.tokens(whole.load(name).config)
    gap = np.zeros((3,), np.int32)
    packed = np.concatenate([gap, rows[0], gap, rows[1]])[None]
    ids = np.repeat(np.asarray([0, 4, 0, 9], np.int32), [3, whole.TIME, 3, whole.TIME])[None]
    found, _ = logits(graph, "chunkwise", params, packed, None, ids)
    expected = whole.stored(name).logits
    assert_close(found[0, ids[0] == 4], expected[0], TOL.f32_forward)
    assert_close(found[0, ids[0] == 9], expected[1], TOL.f32_forward)


@cases
def test_a_tensor_that_one_side_lacks_is_found(name):
    drawn = whole.weights(name, whole.stored(name).shapes)
    with pytest.raises(ValueError, match=r"tensors that are not read: \['unheard of'\]"):
        whole.model(name, {**drawn, "unheard of": np.ones(3)})


def test_files_are_small_and_all_are_used():
    files = {path.stem: path.stat().st_size for path in whole.FOLDER.glob("*.npz")}
    assert sorted(files) == whole.NAMES
    assert max(files.values()) < 100_000


@pytest.mark.oracle
@cases
def test_the_independent_code_still_says_so(name):
    for package in ("torch", "transformers", "rwkv"):
        pytest.importorskip(package, reason="needs the extra `oracles`")
    made, stored = whole.make(name), whole.stored(name)
    assert made.shapes == stored.shapes
    assert_close(made.logits, stored.logits, TOL.f32_forward)
