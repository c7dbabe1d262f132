"""What every registered mixer must do, as far as its flags say that it applies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from effarch import axes, registry
from effarch.config import load, to_yaml
from effarch.mixers import LayerInfo, Progress
from tests.conformance.harness import ALL, MIXERS, Subject, forward
from tests.ops.recurrence_cases import random_segments
from tests.tolerances import TOL, assert_close

T = 72  # more than one chunk of 64, and not a multiple


@pytest.fixture(params=ALL, ids=lambda p: p[1])
def subject(request) -> Subject:
    return Subject.of(*request.param)


def same_trees(actual, expected, tolerance):
    """Leaf by leaf; against the norm of the whole tree where a leaf's own true gradient all but vanishes."""
    pairs = list(zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True))
    size = np.sqrt(sum(float((np.asarray(y, np.float64) ** 2).sum()) for _, y in pairs))
    for (path, x), y in pairs:
        assert_close(x, y, tolerance, jax.tree_util.keystr(path), floor=1e-3 * size)


def exact_gradients(subject, x, ids):
    """The most readable form in float64: the oracle of the others."""
    form = "parallel" if "parallel" in subject.config.forms else "chunkwise"
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(x), jnp.float64)
        cotangent = jnp.asarray(np.asarray(subject.input(*x.shape[:2], seed=99)), jnp.float64)
        return subject.gradients(wide, segment_ids=ids, form=form, cotangent=cotangent)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_forms_agree_with_the_float64_oracle(subject, form):
    """Values and all gradients, packed rows with padding anywhere."""
    subject.needs_form(form)
    x = subject.input(2, T)
    ids = random_segments(np.random.default_rng(3), 2, T)
    y, gradients = subject.gradients(x, segment_ids=ids, form=form)
    true, true_gradients = exact_gradients(subject, x, ids)
    real = np.asarray(ids > 0, np.float32)[..., None]
    assert_close(y * real, np.asarray(true) * real.astype(np.float64), TOL.f32_forward)
    same_trees(gradients, true_gradients, TOL.f32_grad)


def test_split_sequence_with_carried_state_is_the_whole(subject):
    subject.needs(causal=True)
    x = subject.input(2, T)
    whole, _, _ = subject.run(x)
    state, progress = subject.init_state(2, T), Progress.start(2)
    a, state, progress = subject.run(x[:, :41], state=state, progress=progress)
    b, state, progress = subject.run(x[:, 41:], state=state, progress=progress)
    assert_close(jnp.concatenate([a, b], axis=1), whole, TOL.f32_forward)
    assert progress.length.tolist() == [T, T]


def test_token_by_token_is_the_whole(subject):
    """Decoding, with documents that end and padding in the middle."""
    subject.needs(causal=True)
    subject.needs_form("recurrent")
    x = subject.input(2, 24)
    ids = jnp.asarray([[0, 0] + [7] * 9 + [0] + [7] * 4 + [3] * 8, [5] * 20 + [0] * 4])
    whole, _, _ = subject.run(x, segment_ids=ids)
    state, progress = subject.init_state(2, 24), Progress.start(2)
    for t in range(24):
        y, state, progress = subject.run(
            x[:, t : t + 1], state=state, progress=progress, segment_ids=ids[:, t : t + 1], form="recurrent"
        )
        real = np.asarray(ids[:, t] > 0, np.float32)[:, None]
        assert_close(y[:, 0] * real, whole[:, t] * real, 2 * TOL.f32_forward, f"token {t}", floor=0.1)
    assert progress.length.tolist() == [8, 20] and progress.last_segment.tolist() == [3, 5]


def test_prefill_in_pieces_with_documents_and_padding_is_the_whole(subject):
    """Pieces of different rows end in padding, documents end inside pieces, the same id goes on and another resets."""
    subject.needs(causal=True)
    x = subject.input(3, T, seed=5)
    for seed in range(3):
        ids = random_segments(np.random.default_rng(seed), 3, T)
        whole, _, _ = subject.run(x, segment_ids=ids)
        state, progress = subject.init_state(3, T), Progress.start(3)
        pieces = []
        for cut in (slice(0, 24), slice(24, 48), slice(48, 72)):
            y, state, progress = subject.run(x[:, cut], state=state, progress=progress, segment_ids=ids[:, cut])
            pieces.append(y)
        real = np.asarray(ids > 0, np.float32)[..., None]
        assert_close(jnp.concatenate(pieces, axis=1) * real, whole * real, TOL.f32_forward)


def test_packed_documents_are_separate_documents(subject):
    """Equal values; the gradient of one document in another is exactly zero."""
    x = subject.input(1, T)
    ids = jnp.asarray([[4] * 30 + [9] * (T - 30)])
    packed, _, _ = subject.run(x, segment_ids=ids)
    first, _, _ = subject.run(x[:, :30])
    second, _, _ = subject.run(x[:, 30:])
    assert_close(packed, jnp.concatenate([first, second], axis=1), TOL.f32_forward)
    cotangent = subject.input(1, T, seed=99)
    for kept, other in ((slice(0, 30), slice(30, T)), (slice(30, T), slice(0, 30))):
        part = jnp.zeros_like(cotangent).at[:, kept].set(cotangent[:, kept])
        _, (_, gx) = subject.gradients(x, segment_ids=ids, cotangent=part)
        assert (gx[:, other] == 0).all() and (gx[:, kept] != 0).any()


def test_padding_is_the_identity(subject):
    """Left, right and inside: nothing moves, no gradient arrives, and NaN in it stays there."""
    subject.needs(fixed_length=False)
    x = subject.input(1, 40)
    bare, _, _ = subject.run(x)
    spread = np.zeros(T, bool)
    spread[[*range(5, 18), *range(21, 48)]] = True
    padded = jnp.full((1, T, subject.dim), jnp.nan).at[:, spread].set(x)
    ids = jnp.asarray(spread[None].astype(np.int32))
    mask = jnp.asarray(spread[None, :, None])
    cotangent = jnp.where(mask, subject.input(1, T, seed=99), 0)
    clean = jnp.where(mask, padded, 0.5)
    y, (gp, gx) = subject.gradients(clean, segment_ids=ids, cotangent=cotangent)
    assert_close(y[:, spread], bare, TOL.f32_forward)
    assert (gx[:, ~spread] == 0).all()
    state = subject.init_state(1, T) if subject.config.causal else None
    dirty, _, _ = subject.run(padded, segment_ids=ids, state=state)
    assert_close(dirty[:, spread], bare, TOL.f32_forward)


def test_a_row_of_padding_changes_no_state(subject):
    subject.needs(causal=True)
    x = subject.input(2, 24)
    state, progress = subject.init_state(2, T), Progress.start(2)
    _, state, progress = subject.run(x, state=state, progress=progress)
    _, after, later = subject.run(
        x[:, ::-1], state=state, progress=progress, segment_ids=jnp.asarray([[0] * 24, [1] * 24])
    )
    for a, b in zip(jax.tree.leaves((after, later)), jax.tree.leaves((state, progress)), strict=True):
        assert (a[0] == b[0]).all()


def test_causality_by_gradient(subject):
    """No output depends on a later token, to the bit."""
    subject.needs(causal=True)
    x = subject.input(1, T)
    for t in (0, 17, 63, 64, 70):
        cotangent = jnp.zeros((1, T, subject.dim)).at[:, : t + 1].set(subject.input(1, t + 1, seed=98))
        _, (_, gx) = subject.gradients(x, cotangent=cotangent)
        assert (gx[:, t + 1 :] == 0).all() and (gx[:, t] != 0).any()


def test_bfloat16_is_close_to_float32(subject):
    x = subject.input(2, T)
    y, _, _ = subject.run(x)
    low, _, _ = subject.run(x.astype(jnp.bfloat16), parameters=subject.parameters())
    assert low.dtype == jnp.bfloat16
    assert_close(low.astype(jnp.float32), y, TOL.bf16)


def test_extreme_inputs_keep_gradients_finite(subject):
    """Inputs a thousand times too large drive every gate to its end: log-decays far beyond -316 per token."""
    x = 1e3 * subject.input(1, T)
    y, gradients = subject.gradients(x)
    assert jnp.isfinite(y).all()
    for leaf in jax.tree.leaves(gradients):
        assert jnp.isfinite(leaf).all()


def test_sharded_over_eight_devices_is_single(subject):
    time = T if subject.config.context_parallel else None
    mesh = jax.make_mesh((2, 4), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    table = axes.Rules(mesh, (("batch", "data"), *((("time", "context"),) if time else ())))
    x = subject.input(2, T)
    ids = random_segments(np.random.default_rng(4), 2, T)
    y, gradients = subject.gradients(x, segment_ids=ids)
    split, split_gradients = subject.gradients(x, segment_ids=ids, table=table)
    assert_close(split, y, TOL.f32_forward)
    same_trees(split_gradients, gradients, TOL.f32_grad)


def test_compiled_memory_grows_linearly(subject):
    """Forward and backward; parameters and inputs excluded."""
    subject.needs(fixed_length=False)

    def loss(parameters, x):
        return (forward(subject.graph, "chunkwise", None, parameters, x, None, None, None)[0] ** 2).sum()

    def temporaries(time):
        x = jax.ShapeDtypeStruct((1, time, subject.dim), jnp.float32)
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(subject.parameters(), x)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert np.log(temporaries(65536) / temporaries(8192)) / np.log(8) <= 1.05


def test_state_bytes_are_those_of_the_state(subject):
    for time in (16, 1024):
        state = subject.init_state(1, time)
        held = sum(x.nbytes for x in jax.tree.leaves(state))
        assert subject.config.state_bytes(subject.dim, time) == held
    grows = subject.config.state_bytes(subject.dim, 4096) > subject.config.state_bytes(subject.dim, 1024)
    assert grows != subject.config.recurrent
    assert subject.config.flops(subject.dim, 1024) > 0


def test_no_state_in_none_out_and_state_keeps_its_shape(subject):
    """Training carries nothing; a compiled decoding loop needs states that keep shapes and dtypes."""
    _, state, _ = subject.run(subject.input(2, T))
    assert state is None
    subject.needs(causal=True)
    before = subject.init_state(2, T)
    _, after, _ = subject.run(subject.input(2, 1), state=before, progress=Progress.start(2), form="recurrent")
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_every_parameter_names_its_axes(subject):
    params = nnx.split(subject.config.make(subject.dim, layer=LayerInfo(), rngs=nnx.Rngs(0)), nnx.Param, ...)[1]
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    for leaf in leaves:
        names = leaf.get_metadata()["axes"]
        assert len(names) == leaf.ndim and all(name is None or name in axes.NAMES for name in names)


def test_config_is_complete(subject):
    """Round trip through YAML, a paper, a docstring with an equation; hashable."""
    config = subject.config
    assert config.paper and hash(config) == hash(config.replace())
    assert load(type(config), None, []) == type(config)()
    text = to_yaml(config)
    assert text.startswith(f"type: {subject.name}\n")
    assert registry.get(subject.kind, subject.name) is type(config)


@pytest.mark.parametrize("name", MIXERS)
def test_teacher_weights_transfer(name):
    """With the teacher's heads and projections, whatever its own gates and norms do: the output projection is the
    teacher's.
    """
    subject = Subject.of("mixer", name)
    subject.needs(stands_in_for_attention=True)
    teacher = Subject.of("mixer", "softmax_attention")
    config = type(subject.config)().matching(teacher.config)

    @jax.jit
    def transfer(attention):
        student = config.make(teacher.dim, layer=LayerInfo(), rngs=nnx.Rngs(0))
        return nnx.split(student.from_attention(attention))[1]

    attention = nnx.merge(teacher.graph, teacher.parameters())
    moved = transfer(attention)
    copied = [np.asarray(x) for x in jax.tree.leaves(moved)]
    for kernel in (attention.qkv.v.kernel[...], attention.qkv.o.kernel[...]):
        wanted = [np.asarray(kernel), np.repeat(kernel, 2, axis=1)]  # as it is, or its heads repeated
        assert any(x.shape == y.shape and (x == y).all() for x in copied for y in wanted)
