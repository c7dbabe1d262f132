"""Layouts, and stacks of layers held in any of them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from effarch.distill.objectives import next_token
from effarch.mixers.base import Context
from effarch.models.lm import make_lm
from effarch.models.stack import Layout, Stack, scan_layers
from effarch.training.optimizer import OptimizerConfig, make_optimizer
from effarch.training.state import make_state
from effarch.training.step import make_step
from tests.conformance.test_mixers import same_trees
from tests.models import tiny
from tests.tolerances import TOL, assert_close


@pytest.mark.parametrize(
    ("kinds", "layout", "unrolled"),
    [
        ("a", Layout(1, 1, 0, 0), 1),
        ("aaaaaa", Layout(0, 1, 6, 0), 1),
        ("aaabaaabaaab", Layout(0, 4, 3, 0), 4),
        ("aaabaaaba", Layout(0, 4, 2, 1), 5),
        ("abbbbb", Layout(1, 1, 5, 0), 2),
        ("fabcabcabcab", Layout(1, 3, 3, 2), 6),
        ("abcdef", Layout(6, 1, 0, 0), 6),
        ("aab", Layout(0, 1, 2, 1), 2),
        ("abab", Layout(0, 2, 2, 0), 2),
    ],
)
def test_layouts(kinds, layout, unrolled):
    assert Layout.of(kinds) == layout
    assert layout.count == len(kinds) and layout.unrolled == unrolled


def test_no_other_layout_unrolls_less():
    """Against every layout that the kinds allow."""
    for kinds in itertools.chain(*(itertools.product("ab", repeat=n) for n in range(1, 9))):
        best = len(kinds)
        for prefix, period in itertools.product(range(len(kinds)), range(1, len(kinds))):
            for repeats in range(2, (len(kinds) - prefix) // period + 1):
                scanned = kinds[prefix : prefix + period * repeats]
                if scanned == kinds[prefix : prefix + period] * repeats:
                    best = min(best, len(kinds) - period * (repeats - 1))
        layout = Layout.of(kinds)
        assert layout.unrolled == best, kinds
        scanned = kinds[layout.prefix : len(kinds) - layout.suffix]
        assert scanned == kinds[layout.prefix : layout.prefix + layout.period] * layout.repeats


def test_joint_layouts():
    """The longest prefix, the least common multiple of the periods, never beyond where the first one ends."""
    assert Layout.joint([Layout(0, 1, 12, 0), Layout(0, 4, 3, 0)]) == Layout(0, 4, 3, 0)
    assert Layout.joint([Layout(0, 2, 6, 0), Layout(0, 3, 4, 0)]) == Layout(0, 6, 2, 0)
    assert Layout.joint([Layout(0, 1, 9, 0), Layout(1, 2, 3, 2)]) == Layout(1, 2, 3, 2)
    assert Layout.joint([Layout(0, 2, 2, 1), Layout(0, 3, 1, 2)]) == Layout(5, 1, 0, 0)  # no whole period fits
    assert Layout.joint([Layout(4, 1, 0, 0), Layout(0, 1, 4, 0)]) == Layout(4, 1, 0, 0)
    with pytest.raises(ValueError, match=r"layers: expected stacks of one depth, got \[4, 5\]"):
        Layout.joint([Layout(0, 1, 4, 0), Layout(0, 1, 5, 0)])


SIMPLE = tiny.config("retnet", layers=5).replace(pattern=(tiny.block("retnet").replace(channel=None),))
HYBRID = SIMPLE.replace(pattern=[tiny.block(n).replace(channel=None) for n in ("retnet", "softmax_attention")])


def params(tree):
    return nnx.split(tree)[1]


def test_relaid_layers_are_the_same_layers():
    """Of, layers and relaid are inverse to each other, to the bit."""
    stack = tiny.model(HYBRID).stack
    assert stack.layout == Layout(0, 2, 2, 1)
    layers = stack.layers()
    for layout in (Layout(5, 1, 0, 0), Layout(2, 2, 1, 1), Layout(0, 4, 1, 1), Layout(0, 2, 2, 1)):
        held = stack.relaid(layout)
        assert held.layout == layout
        for x, y in zip(held.layers(), layers, strict=True):
            assert type(x.mixer) is type(y.mixer) and tiny.same_bits(params(x), params(y))
        assert tiny.same_bits(params(held.relaid(stack.layout)), params(stack))
    assert stack.relaid(stack.layout) is stack
    assert tiny.same_bits(params(Stack.of(stack.layout, layers)), params(stack))


def body(ctx, carry, layers):
    """Two models at once, each on its own stream; layer y sees what layer x made of it."""
    x, y = carry
    x, *_ = layers[0](x, None, ctx)
    y, *_ = layers[1](y + 0.1 * x, None, ctx)
    return (x, y), {"x": x.mean(axis=-1), "y": y}


@partial(jax.jit, static_argnums=(0, 1), compiler_options=tiny.FAST)
def both(graphs, way, params, x):
    ctx, _ = Context.of(*x.shape[:2])

    def loss(params):
        one, two = (nnx.merge(graph, p) for graph, p in zip(graphs, params, strict=True))
        if way != "by hand":
            carry, ys = scan_layers(partial(body, ctx), (x, x), [one, two], remat=way)
        else:
            carry, ys = (x, x), []
            for layers in zip(one.layers(), two.layers(), strict=True):
                carry, y = body(ctx, carry, layers)
                ys.append(y)
            ys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)
        return (carry[1] ** 2).sum() + sum((y**2).sum() for y in jax.tree.leaves(ys)), (carry, ys)

    return jax.grad(loss, has_aux=True)(params)


def test_two_stacks_of_different_periods_are_scanned_together():
    """As layer by layer: the last carry, what every layer shows in order, and gradients of both."""
    stacks = [tiny.model(config).stack for config in (SIMPLE, HYBRID)]
    graphs, states = zip(*(nnx.split(stack) for stack in stacks), strict=True)
    x = jax.random.normal(jax.random.key(0), (2, 40, tiny.DIM))
    expected_grads, expected = both(graphs, "by hand", states, x)
    grads, found = both(graphs, "full", states, x)
    assert found[1]["y"].shape == (5, 2, 40, tiny.DIM)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(a, b, TOL.f32_forward)
    same_trees(grads, expected_grads, TOL.f32_grad)


def test_unknown_remat():
    stack = tiny.model(SIMPLE).stack
    with pytest.raises(ValueError, match="remat: expected one of none, full, dots, got 'some'"):
        scan_layers(body, None, [stack], remat="some")


def test_the_program_does_not_grow_with_depth():
    """Forward and backward, one mixer and 3 to 1; unrolled it would be four times as long."""

    def size(config) -> int:
        graph, state = nnx.split(jax.eval_shape(partial(make_lm, config)))

        def loss(state, tokens):
            return nnx.merge(graph, state).hidden(tokens).hidden.sum()

        return len(jax.jit(jax.grad(loss)).lower(state, tiny.tokens(1, 40)).as_text())

    three = HYBRID.replace(pattern=[*[SIMPLE.pattern[0]] * 3, HYBRID.pattern[1]])
    assert size(SIMPLE.replace(num_layers=16)) < 1.05 * size(SIMPLE.replace(num_layers=4))
    assert size(three.replace(num_layers=17)) < 1.05 * size(three.replace(num_layers=9))
    apart = SIMPLE.replace(scan_layers=False)
    assert size(apart.replace(num_layers=8)) > 2 * size(apart.replace(num_layers=2))


@pytest.mark.parametrize(
    ("names", "depths"),
    [
        pytest.param(("gated_deltanet",), (2, 24), marks=pytest.mark.slow),
        (("softmax_attention",), (2, 24)),
        pytest.param(("gated_deltanet",) * 3 + ("softmax_attention",), (8, 24), marks=pytest.mark.slow),
    ],
    ids=["gated_deltanet", "softmax_attention", "3 to 1"],
)
def test_a_training_step_of_a_deep_model_is_no_longer_program(names, depths):
    def lines(layers: int) -> int:
        config = tiny.config(*names, layers=layers)
        graph, params, rest = nnx.split(jax.eval_shape(partial(make_lm, config)), nnx.Param, ...)
        tx, _ = make_optimizer(OptimizerConfig(), steps=10)
        state = jax.eval_shape(lambda params: make_state(params, rest, tx, 0), params)
        batch = {name: tiny.tokens(1, 40) for name in ("tokens", "segment_ids", "loss_mask")}
        return jax.jit(make_step(next_token(graph), tx)).lower(state, batch).as_text().count("\n")

    shallow, deep = (lines(layers) for layers in depths)
    assert deep < 1.1 * shallow
