"""The recurrence: the oracle against a quadratic form, every form against the oracle, decays from real models and
worse.
"""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.ops.platform import tracing_for
from effarch.ops.recurrence import Constant, Scalar, linear_recurrence, oracle
from effarch.ops.recurrence.oracle import matrices
from tests.ops.recurrence_cases import SWEEP, TRANSITIONS, make, random_segments, unit
from tests.tolerances import TOL, assert_close

SHAPE = {"batch": 2, "time": 150, "heads": 4, "q_heads": 2, "k_heads": 2, "width": 24, "width_v": 10}
BEFORE = [("scalar", "before"), ("diagonal", "before"), ("rank_one", "before")]  # the slow test reads all both ways
NAMES = ("q", "k", "v", "transition", "state")


def evaluated(form: str):
    """The recurrence in one of its forms, or the oracle."""
    return oracle if form == "oracle" else partial(linear_recurrence, form=form)


@lru_cache
def compiled(form: str, read: str):
    """Values and gradients of everything, for random cotangents of outputs and state; of many cases at once."""
    function = evaluated(form)

    @jax.jit
    @jax.vmap
    def run(inputs, segment_ids, cotangents):
        def forward(q, k, v, transition, state):
            return function(q, k, v, transition=transition, state=state, segment_ids=segment_ids, read=read)

        values, pull = jax.vjp(forward, *inputs)
        return values, pull(cotangents)

    return run


@partial(jax.jit, static_argnums=0)
def values(form, q, k, v, transition, state):
    """Outputs and state of whole rows."""
    return evaluated(form)(q, k, v, transition=transition, state=state)


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees)


def check(form, read, cases, rng):
    """Every one of the cases, pairs of inputs and segment ids."""
    cotangents = [tuple(rng.normal(size=inputs[i].shape).astype(np.float32) for i in (2, 4)) for inputs, _ in cases]
    inputs, segment_ids, cotangents = (stacked(x) for x in ([i for i, _ in cases], [s for _, s in cases], cotangents))
    values, gradients = compiled(form, read)(inputs, segment_ids, cotangents)
    with jax.enable_x64(True):
        true_values, true_gradients = compiled("oracle", read)(double(inputs), segment_ids, double(cotangents))
    for name, x, y in zip((*NAMES, "o", "final"), (*gradients, *values), (*true_gradients, *true_values), strict=True):
        tolerance = TOL.f32_forward if name in ("o", "final") else TOL.f32_grad
        for leaf, (a, b) in enumerate(zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)):
            for case in range(len(cases)):
                assert_close(np.asarray(a)[case], np.asarray(b)[case], tolerance, f"{name} {leaf} of case {case}")


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("name", TRANSITIONS)
def test_oracle_is_the_quadratic_form(name, read):
    """o_i = sum_{j <= i} v_j (k_j^T A_{j+1}^T ... A_i^T q_i), with products of matrices and no state, in numpy."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        q, k, v, transition, state = make(name, rng, batch=1, time=9, heads=2, width=4, width_v=3, dtype=np.float64)
        o, final = oracle(q, k, v, transition=transition, state=state, read=read)
        a, write = (np.asarray(x)[0] for x in matrices(transition, k, 2))
        q, v, state = np.asarray(q)[0], np.asarray(v)[0], np.asarray(state)[0]
        expected = np.zeros(o.shape[1:])
        for h in range(2):
            for i in range(9):
                end = i if read == "before" else i + 1  # tokens whose transition has been applied
                product = np.eye(4)
                for j in reversed(range(end)):
                    expected[i, h] += (q[i, h] @ product @ write[j, h]) * v[j, h]
                    product = product @ a[j, h]
                expected[i, h] += q[i, h] @ product @ state[h]
        assert_close(o[0], expected, TOL.f64)
        assert final.dtype == jnp.float64


@pytest.mark.parametrize(("name", "read"), [(name, "after") for name in TRANSITIONS] + BEFORE)
def test_chunkwise_is_the_oracle(name, read):
    """Packed rows with padding anywhere, T not a multiple of the chunk, grouped heads, an odd head size."""
    rng = np.random.default_rng(0)
    check("chunkwise", read, [(make(name, rng, **SHAPE), random_segments(rng, 2, 150)) for _ in range(6)], rng)


def test_blocks_of_accelerators_give_the_same():
    rng = np.random.default_rng(0)
    q, k, v, transition, state = make("rank_one", rng, time=50)
    with tracing_for("tpu"):
        other = jax.jit(
            lambda q, k, v, transition, state: linear_recurrence(q, k, v, transition=transition, state=state)
        )
        found = other(q, k, v, transition, state)
    for got, expected in zip(found, values("chunkwise", q, k, v, transition, state), strict=True):
        assert_close(got, expected, TOL.f32_forward)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSITIONS)
def test_chunkwise_is_the_oracle_200_times(name):
    for seed in range(20):
        rng = np.random.default_rng(1000 + seed)
        cases = [(make(name, rng, **SHAPE), random_segments(rng, 2, 150)) for _ in range(10)]
        check("chunkwise", ("after", "before")[seed % 2], cases, rng)


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize("name", TRANSITIONS)
def test_other_forms_are_the_oracle(name, form):
    rng = np.random.default_rng(7)
    for read in ("after", "before") if name in ("scalar", "rank_one") else ("after",):
        inputs = make(name, rng, batch=2, time=21, heads=2, width=8, width_v=6)
        check(form, read, [(inputs, random_segments(rng, 2, 21))], rng)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_queries_and_keys_of_different_groups(form):
    """Neither count of heads is that of the groups: head h of v reads q head h // 2 and k head h."""
    rng = np.random.default_rng(11)
    inputs = make("scalar", rng, batch=2, time=37, heads=4, q_heads=2, k_heads=4)
    check(form, "after", [(inputs, random_segments(rng, 2, 37))], rng)


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
@pytest.mark.parametrize("time", [1, 5, 64])
@pytest.mark.parametrize("name", ["constant", "delta_scalar", "rank_one"])
def test_short_and_exact_lengths_without_segments(name, time, form):
    rng = np.random.default_rng(time)
    q, k, v, transition, state = make(name, rng, time=time)
    o, final = values(form, q, k, v, transition, state)
    with jax.enable_x64(True):
        expected = values("oracle", *double((q, k, v, transition, state)))
    assert_close(o, expected[0], TOL.f32_forward)
    assert_close(final, expected[1], TOL.f32_forward)


def sweeps(rng, shape):
    """Every decay of the sweep: everywhere, on alternate tokens, on the first or last of each chunk, mixed over
    heads.
    """
    for decay in SWEEP:
        everywhere = np.full(shape, decay)
        alternate = everywhere.copy()
        alternate[:, 1::2] = 0
        first, last = np.full(shape, -1e-3), np.full(shape, -1e-3)
        first[:, ::64], last[:, 63::64] = decay, decay
        mixed = rng.choice(SWEEP, size=shape)
        yield from (everywhere, alternate, first, last, mixed)


@pytest.mark.parametrize("name", ["constant", "scalar", "diagonal", "delta_scalar", "delta_diagonal", "rank_one"])
def test_decay_sweep(name):
    """log-decay down to -1e4 per token: finite, and within the tolerance, values and gradients."""
    rng = np.random.default_rng(11)
    inputs = make(name, rng, batch=2, time=150, heads=2, width=8, width_v=6)
    whole = np.ones((2, 150), np.int32)
    if name == "constant":
        decays = [np.full((2,), decay) for decay in SWEEP] + [rng.choice(SWEEP, 2) for _ in range(5)]
    else:
        decays = sweeps(rng, inputs[3].log_decay.shape)
    transitions = [dataclasses.replace(inputs[3], log_decay=decay.astype(np.float32)) for decay in decays]
    check("chunkwise", "after", [((*inputs[:3], t, inputs[4]), whole) for t in transitions], rng)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_documents_do_not_see_each_other(name):
    """Packed = separate, and the gradient of one document in another is exactly zero; also for the carried state."""
    rng = np.random.default_rng(3)
    q, k, v, transition, state = make(name, rng, batch=1, time=90, heads=2, width=8, width_v=8)
    ids = jnp.asarray([[4] * 40 + [9] * 50])  # neither is 1: the carried state belongs to another document

    def late(q, k, v, state):
        o, _ = linear_recurrence(q, k, v, transition=transition, state=state, segment_ids=ids)
        return (o[:, 40:] ** 2).sum()

    *inputs, carried = jax.jit(jax.grad(late, argnums=(0, 1, 2, 3)))(q, k, v, state)
    for x in inputs:
        assert (np.asarray(x)[:, :40] == 0).all() and (np.asarray(x)[:, 40:] != 0).any()
    assert (np.asarray(carried) == 0).all()


def test_padding_may_hold_anything():
    """NaN in padded inputs reaches neither values nor gradients; padded outputs are zero."""
    rng = np.random.default_rng(2)
    q, k, v, transition, state = make("delta_scalar", rng, batch=1, time=20, heads=2)
    ids = np.asarray([[0, 0] + [1] * 15 + [0] * 3])
    spoiled = [np.where((ids == 0)[..., None, None], np.float32(np.nan), x) for x in (q, k, v)]

    @jax.jit
    def run(q, k, v):
        values, pull = jax.vjp(
            lambda *args: linear_recurrence(*args, transition=transition, state=state, segment_ids=ids), q, k, v
        )
        return values, pull(jax.tree.map(jnp.ones_like, values))

    (o, final), gradients = run(*spoiled)
    (clean, clean_final), _ = run(q, k, v)
    assert (np.asarray(o)[:, :2] == 0).all() and (np.asarray(o)[:, 17:] == 0).all()
    assert_close(o, clean, 0.0)
    assert_close(final, clean_final, 0.0)
    for x in gradients:
        assert np.isfinite(x).all()


def test_bfloat16_keeps_a_float32_state():
    rng = np.random.default_rng(4)

    @jax.jit
    def run(q, k, v, transition, state):
        return linear_recurrence(q, k, v, transition=transition, state=state)

    for name in ("scalar", "diagonal", "delta_scalar", "rank_one"):
        inputs = make(name, rng, time=70, heads=2, width=16, width_v=16)
        o, state = run(*inputs)
        o16, state16 = run(*(np.asarray(x, jnp.bfloat16) for x in inputs[:3]), *inputs[3:])
        assert o16.dtype == jnp.bfloat16 and state16.dtype == jnp.float32
        assert_close(o16, o, TOL.bf16, name)
        assert_close(state16, state, TOL.bf16, name)


def temporaries(name, time):
    def run(q, k, v, transition, state):
        def forward(*args):
            o, final = linear_recurrence(*args[:3], transition=args[3], state=args[4])
            return o, final

        values, pull = jax.vjp(forward, q, k, v, transition, state)
        return pull(values)

    rng = np.random.default_rng(0)
    inputs = make(name, rng, batch=1, time=2, heads=2, width=32, width_v=32)

    def abstract(x):
        shape = tuple(
            time if i == 1 and x.ndim > 2 and x.shape[1] == 2 and n == 2 else n for i, n in enumerate(x.shape)
        )
        return jax.ShapeDtypeStruct(shape, x.dtype)

    analysis = (
        jax.jit(run).lower(*[jax.tree.map(abstract, x) for x in inputs[:4]], inputs[4]).compile().memory_analysis()
    )
    return analysis.temp_size_in_bytes, analysis.argument_size_in_bytes + analysis.output_size_in_bytes


@pytest.mark.parametrize("name", ["constant", "scalar", "rank_one"])  # the others through their mixers
def test_memory_of_the_backward_pass_is_linear(name):
    (small, _), (large, moved) = temporaries(name, 8192), temporaries(name, 65536)
    assert np.log(large / small) / np.log(8) <= 1.05
    if name in ("constant", "scalar"):
        assert large <= 3 * moved


@pytest.mark.parametrize(("platform", "axes"), [("cpu", 5), ("tpu", 4)])
def test_on_a_tpu_heads_and_channels_are_one_axis_over_all_tokens(platform, axes):
    """It pads a last axis of 64 to 128, and with it all of T."""
    q, k, v, transition, _ = make("rank_one", np.random.default_rng(0))
    with tracing_for(platform):
        traced = jax.make_jaxpr(partial(linear_recurrence, transition=transition, chunk_size=8))(q, k, v)
    (loop,) = [eqn for eqn in traced.eqns if eqn.primitive.name == "scan"]
    chunks = [x.aval.shape for x in (*loop.invars, *loop.outvars) if x.aval.shape[:1] == (loop.params["length"],)]
    assert len(chunks) == 7 and {len(shape) for shape in chunks} == {axes}


def test_errors_name_the_argument():
    rng = np.random.default_rng(0)
    q, k, v, transition, state = make("scalar", rng)
    cases = {
        "form: expected one of parallel, chunkwise, recurrent, got 'fast'": {"form": "fast"},
        "impl: expected None or one of xla, got 'triton'": {"impl": "triton"},
        "read: expected": {"read": "during"},
        "chunk_size: expected a power of two, got 48": {"chunk_size": 48},
        "state: expected shape": {"state": state[:, :1]},
        "log_decay: expected natural logarithms <= 0, got 0.5": {"transition": Scalar(transition.log_decay * 0 + 0.5)},
        r"transition.log_decay: expected shape \[H\] = \[4\], got \[5\]": {"transition": Constant(jnp.zeros(5))},
        "segment_ids: expected an integer array": {"segment_ids": jnp.ones((2, 37))},
        "segment_ids: expected shape": {"segment_ids": jnp.ones((2, 36), jnp.int32)},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            linear_recurrence(q, k, v, **{"transition": transition, "state": state, **change})
    with pytest.raises(ValueError, match="k: expected a number of heads that divides the 4 of v, got 3"):
        linear_recurrence(q, jnp.ones((2, 37, 3, 8)), v, transition=transition)


def test_large_writes_do_not_overflow_the_inverse():
    """beta = 2 on nearly parallel keys: powers of the lower triangle overflow, the inverse by halves does not."""
    rng = np.random.default_rng(8)
    q, k, v, transition, state = make("delta", rng, batch=1, time=128, heads=1, width=16)
    k = jnp.asarray(unit(np.ones((1, 128, 1, 16)) + 0.01 * rng.normal(size=(1, 128, 1, 16))), jnp.float32)
    transition = type(transition)(jnp.full((1, 128, 1), 1.99))
    o, _ = values("chunkwise", q, k, v, transition, state)
    with jax.enable_x64(True):
        expected, _ = values("oracle", *double((q, k, v, transition, state)))
    assert_close(o, expected, 5 * TOL.f32_forward)
