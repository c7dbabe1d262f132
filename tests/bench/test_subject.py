"""Programs of all levels and modes: they compute what they say, and their FLOPs are counted."""

import jax
import jax.numpy as jnp
import pytest

from effarch.bench.ops import BASELINES, DECODED, OPS, draw
from effarch.bench.program import tree_bytes
from effarch.bench.subject import Subject
from effarch.mixers.retnet import RetNet
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.models.lm import LMConfig
from tests.tolerances import TOL, assert_close

HERE = [op for op in OPS if op != "softmax_platform"]
SIZES = {"length": 40, "heads": 2, "head_dim": 8, "dim": 16}
MIXERS = {
    "retnet": RetNet(num_heads=2, head_dim=8, value_head_dim=8),
    "softmax": SoftmaxAttention(num_heads=2, num_kv_heads=2, head_dim=8),
}


def inputs(op, length):
    sizes = {"batch": 1, "length": length, "heads": 2, "head_dim": 8, "dtype": jnp.float32}
    return jax.jit(lambda key: draw(op, key, **sizes))(jax.random.key(0))


@pytest.mark.parametrize("op", HERE)
def test_decoding_after_a_prompt_is_the_forward_pass(op):
    what = OPS[op]
    x = inputs(op, 8)
    whole = jax.jit(what.forward)(x)

    @jax.jit
    def token_by_token(x):
        state = what.state(1, DECODED, 2, 8, jnp.float32)  # of nothing read
        tokens = {name: jnp.moveaxis(value, 1, 0)[:, :, None] for name, value in x.items()}
        _, o = jax.lax.scan(lambda s, token: what.step(s, token)[::-1], state, tokens)
        return jnp.moveaxis(o[:, :, 0], 0, 1)

    assert_close(token_by_token(x), whole, TOL.f32_forward)


@pytest.mark.parametrize("op", [op for op in BASELINES if op != "softmax_platform"])
def test_baselines_agree_where_the_window_sees_all(op):
    x = jax.jit(lambda key: draw(op, key, batch=1, length=40, heads=2, head_dim=8, dtype=jnp.float32))(
        jax.random.key(0)
    )
    assert_close(jax.jit(OPS[op].forward)(x), jax.jit(OPS["softmax_materialised"].forward)(x), TOL.f32_forward)


@pytest.mark.parametrize("mode", ["training", "prefill", "decode"])
@pytest.mark.parametrize(
    "fields",
    [
        {"level": "op", "name": "gated_delta"},
        {"level": "op", "name": "window_sinks"},
        {"level": "mixer", "mixer": MIXERS["retnet"]},
        {"level": "block", "mixer": MIXERS["softmax"]},
        {"level": "model", "model": LMConfig(vocab_size=11, dim=16, num_layers=2).with_mixer(MIXERS["retnet"])},
    ],
    ids=["recurrence", "window", "mixer", "block", "model"],
)
def test_programs_run_on_fresh_inputs_and_give_finite_results(fields, mode):
    program = Subject(mode=mode, **SIZES, **fields).program()
    one, two = (jax.jit(program.arguments)(jax.random.key(seed)) for seed in (0, 1))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    results = jax.jit(program.run)(*one)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(results))
    assert program.tokens == (DECODED if mode == "decode" else 40)
    assert program.flops > 0 and program.state_bytes > 0
    assert program.bytes == program.rounds * tree_bytes(one) + tree_bytes(results)


def test_training_gives_the_gradients_of_a_weighted_sum():
    program = Subject(name="constant", **SIZES).program()
    x, weight = jax.jit(program.arguments)(jax.random.key(0))
    (found,) = jax.jit(program.run)(x, weight)
    o, pull = jax.vjp(jax.jit(OPS["constant"].forward), x)
    for name, expected in pull(weight)[0].items():
        assert_close(found[name], expected, TOL.f32_grad, name)


def test_flops_of_softmax_attention_are_those_of_the_pairs_that_see_each_other():
    program = Subject(name="softmax", mode="prefill", **SIZES).program()
    assert program.flops == 2 * (2 * 2 * 8) * (40 * 41 // 2)  # two products, two heads of 8
    assert Subject(name="softmax", **SIZES).program().flops == 3 * program.flops
    decoded = Subject(name="softmax", mode="decode", **SIZES).program()
    assert (
        decoded.flops
        == program.flops - Subject(name="softmax", mode="prefill", **SIZES | {"length": 8}).program().flops
    )


def test_keys_tell_subjects_apart():
    one = Subject(name="constant", **SIZES)
    assert one.key == Subject(name="constant", **SIZES).key != one.replace(length=41).key


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "softmaxx"}, "ops: expected any of"),
        ({"name": "constant", "mode": "decode", "length": DECODED}, "lengths: expected more than the 32 tokens"),
        ({"level": "mixer"}, "mixers: expected a mixer, got none"),
        ({"level": "model"}, "model: expected the config of a language model"),
    ],
)
def test_what_cannot_be_built_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Subject(**SIZES | fields).program()
