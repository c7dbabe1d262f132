import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effarch.parallel import sharding
from effarch.parallel.mesh import MeshConfig
from effarch.training import step
from tests.tolerances import TOL, assert_close
from tests.training import toy

STEPS = 4


def same(a, b):
    assert_close(a, b, TOL.f32_forward)


def run_steps(run, **kwargs):
    now, advance, losses = run.init(), run.compiled(**kwargs), []
    for n in range(STEPS):
        now, metrics = advance(now, sharding.put_batch(toy.batch_at(0, n), run.rules))
        losses.append({name: float(x) for name, x in metrics.items()})
    return now, losses


@pytest.fixture(scope="module")
def alone():
    return run_steps(toy.setup(), noise=0.1)


@pytest.fixture(scope="module")
def quiet():
    return run_steps(toy.setup())


@pytest.mark.parametrize("mesh", [MeshConfig(data=4, fsdp=2), MeshConfig(data=1, fsdp=2, tensor=2, context=2)], ids=str)
def test_eight_devices_are_one(alone, mesh):
    now, seen = run_steps(toy.setup(mesh, 8), noise=0.1)
    assert not now.params["layers"]["w"].get_value().sharding.is_fully_replicated
    for name in seen[0]:
        assert_close([m[name] for m in seen], [m[name] for m in alone[1]], TOL.f32_forward, name)
    jax.tree.map(same, (now.params, now.opt_state), (alone[0].params, alone[0].opt_state))


@pytest.mark.parametrize(("parts", "devices"), [(2, 2), (8, 1)])
def test_micro_batches_add_up_to_the_batch(quiet, parts, devices):
    split, seen = run_steps(toy.setup(devices=devices), grad_accum=parts)
    for name in seen[0]:
        assert_close([m[name] for m in seen], [m[name] for m in quiet[1]], TOL.f32_forward, name)
    jax.tree.map(same, split.params, quiet[0].params)


def test_micro_batches_that_do_not_divide():
    run = toy.setup()
    with pytest.raises(ValueError, match="grad_accum: expected a divisor of the batch of 16 rows, got 3"):
        jax.eval_shape(step.make_step(toy.loss_fn, run.tx, grad_accum=3), run.abstract, toy.batch_at(0, 0))
    with pytest.raises(ValueError, match="grad_accum: expected a positive number"):
        step.make_step(toy.loss_fn, run.tx, grad_accum=0)


PLACES = ("loss", "weight", "gradient")


def poisoned(params, rest, batch, rng):
    """NaN in the loss, in the weight, or only in the gradient: 0 * sqrt'(0)."""
    loss, weight, metrics = toy.loss_fn(params, rest, batch, rng)
    bad = dict(zip(PLACES, batch["bad"].sum(0), strict=True))
    zero = params["gain"][...][0] - jax.lax.stop_gradient(params["gain"][...][0])
    loss = loss + 0 * jnp.sqrt(zero + 1 - bad["gradient"])
    poison = {place: jnp.where(bad[place] > 0, jnp.nan, 1.0) for place in PLACES}
    return loss * poison["loss"], weight * poison["weight"], metrics


@pytest.mark.parametrize("parts", [1, 2])
def test_nan_leaves_everything_bit_identical(parts):
    run = toy.setup()
    advance = step.jit_step(step.make_step(poisoned, run.tx, grad_accum=parts), run.shardings, run.rules)
    good = toy.batch_at(0, 0) | {"bad": np.zeros((toy.ROWS, len(PLACES)), np.float32)}
    now, metrics = advance(run.init(), good)
    assert metrics["skipped"] == 0 and np.isfinite(metrics["grad_norm"])
    before = jax.tree.map(np.array, now)
    for n, place in enumerate(PLACES):
        bad = good["bad"].copy()
        bad[3, n] = 1.0
        now, metrics = advance(now, good | {"bad": bad})
        assert metrics["skipped"] == 1 and int(now.skipped) == n + 1 and int(now.step) == n + 2, place
        assert np.isfinite(metrics["loss"]) == (place == "gradient")
        for name in ("params", "rest", "opt_state", "rng"):
            assert toy.same_bits(getattr(now, name), getattr(before, name)), (place, name)
    now, metrics = advance(now, good)
    assert metrics["skipped"] == 0 and int(now.skipped) == len(PLACES)
    assert not toy.same_bits(now.params, before.params)


def test_masked_batch_has_no_loss_and_no_nan():
    run = toy.setup()

    def infinite(params, rest, batch, rng):
        loss, weight, metrics = toy.loss_fn(params, rest, batch, rng)
        return loss / weight * weight, weight, metrics  # 0 / 0 when all is masked

    advance = step.jit_step(step.make_step(infinite, run.tx), run.shardings, run.rules)
    now, metrics = advance(run.init(), {"tokens": np.zeros((toy.ROWS, toy.LENGTH + 1), np.int32)})
    assert {name: float(x) for name, x in metrics.items()} == dict.fromkeys(metrics, 0.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((now.params, now.opt_state)))


def test_each_step_has_its_own_key():
    run = toy.setup()

    def draw(params, rest, batch, rng):
        loss, weight, _ = toy.loss_fn(params, rest, batch, rng)
        return loss, weight, {"draw": jax.random.normal(rng) * weight}

    for parts in (1, 2):
        advance = step.jit_step(step.make_step(draw, run.tx, grad_accum=parts), run.shardings, run.rules)
        now, seen = run.init(), set()
        for _ in range(2):
            now, metrics = advance(now, toy.batch_at(0, 0))
            seen.add(float(metrics["draw"]))
        assert len(seen) == 2


def test_a_scheduled_loss_is_told_its_update():
    """A phase that begins at step 1 of a run counts from 0, in every micro-batch."""
    run = toy.setup()

    def told(params, rest, batch, rng, *, update):
        loss, weight, _ = toy.loss_fn(params, rest, batch, rng)
        return loss, weight, {"update": update.astype(weight.dtype) * weight}

    scheduled = step.make_step(step.Scheduled(told), run.tx, grad_accum=2, first=1)
    advance = step.jit_step(scheduled, run.shardings, run.rules)
    now, seen = run.init(), []
    for _ in range(3):
        now, metrics = advance(now, toy.batch_at(0, 0))
        seen.append(float(metrics["update"]))
    assert seen == [-1, 0, 1]


def test_reserved_metric_name():
    run = toy.setup()

    def named(params, rest, batch, rng):
        loss, weight, _ = toy.loss_fn(params, rest, batch, rng)
        return loss, weight, {"grad_norm": loss}

    with pytest.raises(ValueError, match="metrics: expected names other than .*got 'grad_norm'"):
        jax.eval_shape(step.make_step(named, run.tx), run.abstract, toy.batch_at(0, 0))
