"""What every registered mixer must do, as far as its flags say that it applies.

Compiling is what these tests spend their time on, so they share it: rows of one shape, documents always given (or
never), pieces of one length; outside of compiled functions there is numpy only. Tests of one mixer stay in one worker.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from effarch import axes, registry
from effarch.config import load, to_yaml
from effarch.mixers import LayerInfo, Progress
from tests.conformance.harness import ALL, HALF, MIXERS, Subject, T, forward
from tests.tolerances import TOL, assert_close

#: One mixer for every recurrence and every way in which a sequence is split over devices.
SPLIT = ("softmax_attention", "retnet", "gla", "gated_deltanet", "rwkv7", "mamba1")

#: One mixer for every mechanism.
MEASURED = (
    *SPLIT,
    "sliding_window",
    "sparse_transformer",
    "moba",
    "nsa",
    "mlstm",
    "rwkv4",
    "performer",
    "nystromformer",
)


def grouped(value, name, slow=False):
    marks = [pytest.mark.xdist_group(name), *([pytest.mark.slow] if slow else [])]
    return pytest.param(value, id=name, marks=marks)


def by_default(names):
    """For these mixers; for the others in `slow`."""
    return pytest.mark.parametrize("subject", [grouped(p, p[1], p[1] not in names) for p in ALL], indirect=True)


@pytest.fixture(params=[grouped(pair, pair[1]) for pair in ALL])
def subject(request) -> Subject:
    return Subject.of(*request.param)


def same_trees(actual, expected, tolerance):
    """Leaf by leaf; against the norm of the whole tree where a leaf's own true gradient all but vanishes."""
    pairs = list(zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True))
    size = np.sqrt(sum(float((np.asarray(y, np.float64) ** 2).sum()) for _, y in pairs))
    for (path, x), y in pairs:
        assert_close(x, y, tolerance, jax.tree_util.keystr(path), floor=1e-3 * size)


def changed(x, *places):
    """A copy of ``x`` with another value at every ``(index, value)``."""
    x = x.copy()
    for index, value in places:
        x[index] = value
    return x


def real(ids, like):
    """1 at tokens, 0 at padding."""
    return np.ones(like.shape[:2] + (1,)) if ids is None else np.asarray(ids > 0, np.float64)[..., None]


def exact_gradients(subject, x, ids):
    """The most readable form in float64: the oracle of the others."""
    form = "parallel" if "parallel" in subject.config.forms else "chunkwise"
    with jax.enable_x64(True):
        wide, cotangent = (y.astype(np.float64) for y in (x, subject.input(seed=99)))
        return subject.gradients(wide, segment_ids=ids, form=form, cotangent=cotangent)


@pytest.mark.xdist_group("groups")
def test_groups_stay_in_one_worker(request):
    """Silently lost, they double what is compiled."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("without -n there is one worker")
    assert request.node.nodeid.endswith("@groups")


@pytest.mark.parametrize("form", ["chunkwise", "recurrent", "parallel"])
def test_forms_agree_with_the_float64_oracle(subject, form):
    """Values, and all gradients of the forms that train, packed rows with padding anywhere."""
    subject.needs_form(form)
    if form == "parallel" and len(subject.config.forms) > 1:
        pytest.skip(f"{subject.name}: the parallel form is the oracle of the others")
    x, ids = subject.input(), subject.documents(3)
    true, true_gradients = exact_gradients(subject, x, ids)
    if form == "recurrent":
        y, _, _ = subject.run(x, segment_ids=ids, form=form)
    else:
        y, gradients = subject.gradients(x, segment_ids=ids, form=form)
        same_trees(gradients, true_gradients, TOL.f32_grad)
    assert_close(y * real(ids, y), true * real(ids, y), TOL.f32_forward)


@by_default(SPLIT)
def test_gradients_of_the_recurrent_form(subject):
    subject.needs_form("recurrent")
    x, ids = subject.input(), subject.documents(3)
    _, gradients = subject.gradients(x, segment_ids=ids, form="recurrent")
    same_trees(gradients, exact_gradients(subject, x, ids)[1], TOL.f32_grad)


def test_rows_without_documents_are_rows_of_one_document(subject):
    subject.needs(packed=True)
    x = subject.input()
    one, _ = subject.gradients(x, segment_ids=subject.one_document())
    y, _, _ = subject.run(x)
    assert_close(y, one, TOL.f32_forward)


@by_default(SPLIT)
def test_gradients_of_rows_without_documents(subject):
    subject.needs(packed=True)
    x = subject.input()
    _, gradients = subject.gradients(x)
    same_trees(gradients, subject.gradients(x, segment_ids=subject.one_document())[1], TOL.f32_grad)


def test_split_sequence_with_carried_state_is_the_whole(subject):
    subject.needs(causal=True)
    x = subject.input()
    whole, _ = subject.gradients(x, segment_ids=subject.one_document())
    state, progress, ids = subject.init_state(2, T), Progress.start(2), subject.one_document(time=HALF)
    a, state, progress = subject.run(x[:, :HALF], state=state, progress=progress, segment_ids=ids)
    b, state, progress = subject.run(x[:, HALF:], state=state, progress=progress, segment_ids=ids)
    assert_close(np.concatenate([a, b], axis=1), whole, TOL.f32_forward)
    assert progress.length.tolist() == [T, T]


def test_token_by_token_is_the_whole(subject):
    """Decoding, with documents that end and padding in the middle."""
    subject.needs(causal=True)
    subject.needs_form("recurrent")
    x, steps = subject.input(), 24
    ids = np.zeros((2, T), np.int64)
    ids[:, :steps] = [[0, 0] + [7] * 9 + [0] + [7] * 4 + [3] * 8, [5] * 20 + [0] * 4]
    whole, _ = subject.gradients(x, segment_ids=ids)
    state, progress = subject.init_state(2, T), Progress.start(2)
    for t in range(steps):
        y, state, progress = subject.run(
            x[:, t : t + 1], state=state, progress=progress, segment_ids=ids[:, t : t + 1], form="recurrent"
        )
        mask = real(ids, x)[:, t]
        assert_close(np.asarray(y)[:, 0] * mask, whole[:, t] * mask, 2 * TOL.f32_forward, f"token {t}", floor=0.1)
    assert progress.length.tolist() == [8, 20] and progress.last_segment.tolist() == [3, 5]


def test_prefill_in_pieces_with_documents_and_padding_is_the_whole(subject):
    """Pieces of different rows end in padding, documents end inside pieces, the same id goes on and another resets."""
    subject.needs(causal=True)
    x = subject.input(seed=5)
    for seed in range(4):
        ids = subject.documents(seed)
        whole, _ = subject.gradients(x, segment_ids=ids)
        state, progress = subject.init_state(2, T), Progress.start(2)
        pieces = []
        for cut in (slice(0, HALF), slice(HALF, T)):
            y, state, progress = subject.run(x[:, cut], state=state, progress=progress, segment_ids=ids[:, cut])
            pieces.append(y)
        mask = real(ids, x)
        assert_close(np.concatenate(pieces, axis=1) * mask, whole * mask, TOL.f32_forward)


def test_packed_documents_are_separate_documents(subject):
    """Equal values; the gradient of one document in another is exactly zero."""
    subject.needs(packed=True)
    x = subject.input()
    x[1] = x[0]
    first, second = slice(0, 30), slice(30, T)
    packed, _ = subject.gradients(x, segment_ids=[[4] * 30 + [9] * (T - 30)] * 2)
    apart, _ = subject.gradients(x, segment_ids=[[4] * 30 + [0] * (T - 30), [0] * 30 + [4] * (T - 30)])
    assert_close(packed[0], np.concatenate([apart[0, first], apart[1, second]]), TOL.f32_forward)
    cotangent = changed(subject.input(seed=99), ((0, second), 0), ((1, first), 0))
    _, (_, gx) = subject.gradients(x, segment_ids=[[4] * 30 + [9] * (T - 30)] * 2, cotangent=cotangent)
    for row, kept, other in ((0, first, second), (1, second, first)):
        assert (gx[row, other] == 0).all() and (gx[row, kept] != 0).any()


def test_padding_is_the_identity(subject):
    """Left, right and inside: nothing moves, no gradient arrives."""
    subject.needs(packed=True)
    x = subject.input()
    places = np.zeros((2, T), bool)
    places[0, [*range(5, 18), *range(21, 48)]] = True
    places[1, :40] = True
    clean = changed(np.full_like(x, 0.5), (places, np.tile(x[0, :40], (2, 1))))
    cotangent = changed(subject.input(seed=99), (~places, 0))
    y, (_, gx) = subject.gradients(clean, segment_ids=places, cotangent=cotangent)
    assert_close(y[0, places[0]], y[1, :40], TOL.f32_forward)
    assert (gx[~places] == 0).all()


def test_nan_in_padding_stays_there(subject):
    subject.needs(causal=True)
    x = subject.input()[:, :HALF]
    places = np.zeros((2, HALF), bool)
    places[0, [*range(5, 14), *range(17, 30)]] = True
    places[1, :20] = True
    state, progress = subject.init_state(2, T), Progress.start(2)
    clean, after, _ = subject.run(x, segment_ids=places, state=state, progress=progress)
    nans = changed(x, (~places, np.nan))
    dirty, same, _ = subject.run(nans, segment_ids=places, state=state, progress=progress)
    assert_close(np.asarray(dirty)[places], np.asarray(clean)[places], TOL.f32_forward)
    for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(after), strict=True):
        assert_close(a, b, TOL.f32_forward)


def test_a_row_of_padding_changes_no_state(subject):
    subject.needs(causal=True)
    x = subject.input()[:, :HALF]
    state, progress = subject.init_state(2, T), Progress.start(2)
    ids = subject.one_document(time=HALF)
    _, state, progress = subject.run(x, state=state, progress=progress, segment_ids=ids)
    _, after, later = subject.run(x[:, ::-1], state=state, progress=progress, segment_ids=[[0] * HALF, [1] * HALF])
    for a, b in zip(jax.tree.leaves((after, later)), jax.tree.leaves((state, progress)), strict=True):
        assert (np.asarray(a)[0] == np.asarray(b)[0]).all()


def test_causality_by_gradient(subject):
    """No output depends on a later token, to the bit."""
    subject.needs(causal=True)
    x = subject.input()
    for t in (0, 17, 31, 32, 63, 64, 70):
        cotangent = changed(subject.input(seed=98), ((slice(None), slice(t + 1, None)), 0))
        _, (_, gx) = subject.gradients(x, segment_ids=subject.one_document(), cotangent=cotangent)
        assert (gx[:, t + 1 :] == 0).all() and (gx[:, t] != 0).any()


def test_bfloat16_is_close_to_float32(subject):
    x, ids = subject.input(), subject.one_document()
    y, _ = subject.gradients(x, segment_ids=ids)
    low, _, _ = subject.run(x.astype(jnp.bfloat16), parameters=subject.parameters(), segment_ids=ids)
    assert low.dtype == jnp.bfloat16
    assert_close(low, y, TOL.bf16)


def test_extreme_inputs_keep_gradients_finite(subject):
    """Inputs a thousand times too large drive every gate to its end: log-decays far beyond -316 per token."""
    for leaf in jax.tree.leaves(subject.gradients(1e3 * subject.input(), segment_ids=subject.one_document())):
        assert np.isfinite(leaf).all()


@by_default(("softmax_attention", "retnet", "gla", "mamba1", "bigbird", "longformer"))
def test_sharded_over_eight_devices_is_single(subject):
    split_time = subject.config.context_parallel
    mesh = jax.make_mesh((2, 4), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    table = axes.Rules(mesh, (("batch", "data"), *((("time", "context"),) if split_time else ())))
    x, ids = subject.input(), subject.documents(4)
    y, gradients = subject.gradients(x, segment_ids=ids)
    split, split_gradients = subject.gradients(x, segment_ids=ids, table=table)
    assert_close(split, y, TOL.f32_forward)
    same_trees(split_gradients, gradients, TOL.f32_grad)


@by_default(MEASURED)
def test_compiled_memory_grows_linearly(subject):
    """Forward and backward; parameters and inputs excluded. Folding what positions alone decide takes seconds."""
    subject.needs(fixed_length=False)

    trained, fixed = nnx.split_state(subject.parameters(), nnx.Param, ...)
    fixed = jax.tree.map(jnp.asarray, fixed)  # as constants of a trace they are indexed by what is traced

    def loss(trained, x):
        parameters = nnx.merge_state(trained, fixed)
        return (forward(subject.graph, "chunkwise", None, parameters, x, None, None, None)[0] ** 2).sum()

    def temporaries(time):
        x = jax.ShapeDtypeStruct((1, time, subject.dim), jnp.float32)
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(trained, x)
        program = lowered.compile(compiler_options={"xla_disable_hlo_passes": "constant_folding"})
        return program.memory_analysis().temp_size_in_bytes

    assert np.log(temporaries(65536) / temporaries(8192)) / np.log(8) <= 1.05


def test_state_bytes_are_those_of_the_state(subject):
    subject.needs(causal=True)
    for time in (16, 1024):
        state = subject.init_state(1, time)
        held = sum(x.nbytes for x in jax.tree.leaves(state))
        assert subject.config.state_bytes(subject.dim, time) == held
    grows = subject.config.state_bytes(subject.dim, 4096) > subject.config.state_bytes(subject.dim, 1024)
    assert grows != subject.config.recurrent


def test_flops_are_counted(subject):
    """At least in proportion to the length, beyond what a row costs however long it is."""
    once, twice, four = (subject.config.flops(subject.dim, n * subject.time) for n in (1, 2, 4))
    assert once > 0 and four - twice >= 2 * (twice - once) > 0


def test_no_state_in_none_out_and_state_keeps_its_shape(subject):
    """Training carries nothing; a compiled decoding loop needs states that keep shapes and dtypes."""
    none = jax.eval_shape(lambda x: subject.run(x)[1], subject.input())
    assert none is None
    subject.needs(causal=True)
    before, ids = subject.init_state(2, T), jnp.ones((2, 1), jnp.int32)
    x = subject.input(time=1)
    _, after, _ = subject.run(x, state=before, progress=Progress.start(2), segment_ids=ids, form="recurrent")
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_every_parameter_names_its_axes(subject):
    made = jax.eval_shape(lambda: subject.config.make(subject.dim, layer=LayerInfo(), rngs=nnx.Rngs(0)))
    params = nnx.split(made, nnx.Param, ...)[1]
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


@pytest.mark.parametrize("name", [grouped(name, name) for name in MIXERS])
def test_teacher_weights_transfer(name):
    """With the teacher's heads and projections, whatever its own gates and norms do: the output projection is the
    teacher's, and so are the biases of those that have any. Its key heads are few.
    """
    subject = Subject.of("mixer", name)
    subject.needs(stands_in_for_attention=True)
    teacher = Subject.of("mixer", "softmax_attention")
    biased = teacher.config.replace(qkv_bias=True, out_bias=True)
    config = type(subject.config)().matching(biased)

    @jax.jit
    def transfer(attention):
        student = config.make(teacher.dim, layer=LayerInfo(), rngs=nnx.Rngs(0))
        return nnx.split(student.from_attention(attention))[1]

    graph, shapes = nnx.split(jax.eval_shape(lambda: biased.make(teacher.dim, layer=LayerInfo(), rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    attention = nnx.merge(graph, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes))
    moved = transfer(attention)
    copied = [np.asarray(x) for x in jax.tree.leaves(moved)]
    if "qkv_bias" in type(config).model_fields:
        assert config.qkv_bias and config.out_bias
        for bias in (attention.qkv.v.bias[...], attention.qkv.o.bias[...]):
            wanted = [np.asarray(bias), np.repeat(bias, 2, axis=0)]
            assert any(x.shape[-y.ndim :] == y.shape and (x == y).all() for x in copied for y in wanted)
    for kernel in (attention.qkv.v.kernel[...], attention.qkv.o.kernel[...]):
        wanted = [np.asarray(kernel), np.repeat(kernel, 2, axis=1)]  # as it is, or its heads repeated
        assert any(holds(x, y) for x in copied for y in wanted)


def holds(x, kernel):
    """Whether a parameter is a kernel: as it is, with its heads side by side, or once for each write of a token."""
    if x.ndim == kernel.ndim + 1:
        return x[:, 0].shape == kernel.shape and (x == kernel[:, None]).all()
    return x.ndim >= 2 and x.size == kernel.size and (x.reshape(kernel.shape) == kernel).all()
