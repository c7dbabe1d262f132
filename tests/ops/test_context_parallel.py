"""A sequence split over 8 devices gives what one device gives, for every transition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from effarch import axes
from effarch.ops.recurrence import linear_recurrence
from effarch.ops.recurrence.context import apply, compose
from effarch.ops.scan import linear_scan
from tests.ops.recurrence_cases import TRANSITIONS, make, random_segments
from tests.tolerances import TOL, assert_close


def rules():
    mesh = jax.make_mesh((2, 4), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    return axes.Rules(mesh, (("batch", "data"), ("time", "context")))


#: The others are special cases of these, in `slow`.
BY_DEFAULT = ("constant", "scalar", "delta_diagonal", "rank_one")
CASES = [pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.slow]) for name in TRANSITIONS]


@pytest.mark.parametrize("name", CASES)
def test_split_over_devices_is_whole(name):
    rng = np.random.default_rng(6)
    inputs = make(name, rng, batch=2, time=64, heads=2, width=8, width_v=8)
    ids = random_segments(np.random.default_rng(1), 2, 64)
    cotangents = tuple(jnp.asarray(rng.normal(size=inputs[i].shape), jnp.float32) for i in (2, 4))

    @partial(jax.jit, static_argnums=0)
    def run(table, inputs, ids):
        def forward(q, k, v, transition, state):
            return linear_recurrence(q, k, v, transition=transition, state=state, segment_ids=ids, chunk_size=8)

        with axes.rules(table):
            values, pull = jax.vjp(forward, *inputs)
            return values, pull(cotangents)

    whole, split = run(None, inputs, ids), run(rules(), inputs, ids)
    for x, y in zip(jax.tree.leaves(split[0]), jax.tree.leaves(whole[0]), strict=True):
        assert_close(x, y, TOL.f32_forward)
    for x, y in zip(jax.tree.leaves(split[1]), jax.tree.leaves(whole[1]), strict=True):
        assert_close(x, y, TOL.f32_grad)


def gathered(run, *inputs):
    """Types of what is gathered over devices when ``run`` is traced under the rules."""

    def ruled(*inputs):
        with axes.rules(rules()):
            return run(*inputs)

    text = jax.jit(ruled).lower(*inputs).as_text()
    return sorted(line.split(":")[-1] for line in text.splitlines() if "all_gather" in line and "tensor" in line)


def test_the_sequence_is_not_gathered():
    """The only arrays exchanged are the affine maps: their size does not depend on T."""

    def recurrence(time):
        inputs = make("delta_scalar", np.random.default_rng(0), batch=1, time=time, heads=2, width=8, width_v=8)

        def run(q, k, v, transition, state):
            return linear_recurrence(q, k, v, transition=transition, state=state, chunk_size=8)

        return gathered(run, *inputs)

    def scan(time):
        x = jnp.zeros((2, time, 6))
        return gathered(lambda x: linear_scan((x, x), state=x[:, 0], chunk_size=8), x)

    assert recurrence(64) == recurrence(128) != []
    assert scan(64) == scan(128) != []


def test_composition_of_affine_maps():
    rng = np.random.default_rng(0)
    maps = [tuple(jnp.asarray(rng.normal(size=(1, 1, 4, n)), jnp.float32) for n in (4, 3)) for _ in range(3)]
    state = jnp.asarray(rng.normal(size=(1, 1, 4, 3)), jnp.float32)
    one_by_one = apply(maps[2], apply(maps[1], apply(maps[0], state)))
    assert_close(apply(compose(compose(maps[0], maps[1]), maps[2]), state), one_by_one, TOL.f32_forward)
    assert_close(apply(compose(maps[0], compose(maps[1], maps[2])), state), one_by_one, TOL.f32_forward)


@pytest.mark.parametrize("name", ["constant", "delta_scalar"])
def test_tokens_that_devices_do_not_divide(name):
    """The padding decays nothing, also where no documents are given; the last device has nothing else."""
    inputs = make(name, np.random.default_rng(0), batch=2, time=5, heads=2, width=8, width_v=8)

    @partial(jax.jit, static_argnums=0)
    def run(table, q, k, v, transition, state):
        with axes.rules(table):
            return linear_recurrence(q, k, v, transition=transition, state=state, chunk_size=8)

    for x, y in zip(run(rules(), *inputs), run(None, *inputs), strict=True):
        assert_close(x, y, TOL.f32_forward)


def test_scan_split_over_devices_is_whole():
    """With documents, a carried state, and gates that hold parameters: their gradient comes from every device."""
    rng = np.random.default_rng(7)
    x, weight, state = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 64, 6), (6, 3), (2, 6, 3)))
    ids = random_segments(np.random.default_rng(1), 2, 64)
    cotangents = tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 64, 6), (2, 6, 3)))

    @partial(jax.jit, static_argnums=0)
    def run(table, x, weight, state):
        def forward(x, weight, state):
            def gates(x, weight):
                return -jax.nn.softplus(x[..., None] + weight[None, None]), x[..., None] * weight[None, None]

            def read(h, x):
                return h.sum(axis=-1) + x

            return linear_scan(x, state=state, gates=gates, parameters=weight, read=read, segment_ids=ids, chunk_size=8)

        with axes.rules(table):
            values, pull = jax.vjp(forward, x, weight, state)
            return values, pull(cotangents)

    whole, split = run(None, x, weight, state), run(rules(), x, weight, state)
    for a, b in zip(split[0], whole[0], strict=True):
        assert_close(a, b, TOL.f32_forward)
    for a, b in zip(split[1], whole[1], strict=True):
        assert_close(a, b, TOL.f32_grad)
