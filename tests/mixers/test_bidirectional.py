"""Both directions of a recurrence: forward + backward - self, exact where that is linear; what crosses layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch import registry
from effarch.config import UserError, load
from effarch.mixers import Context, LayerInfo
from effarch.mixers.bidirectional import Bidirectional
from effarch.mixers.retnet import RetNet
from effarch.models.lm import LMConfig
from tests.conformance.harness import Subject
from tests.tolerances import TOL, assert_close

B, T, DIM = 2, 24, 32
IDS = jnp.asarray([[0, 0] + [7] * 9 + [0] + [7] * 4 + [3] * 8, [5] * 17 + [6] + [0] * 6])
REAL = np.asarray(IDS > 0, np.float32)[..., None]


class Same(nnx.Module):
    """In place of a norm."""

    def __call__(self, x):
        return x


def tiny(inner: str, **options) -> Bidirectional:
    return Bidirectional(inner=registry.get("mixer", inner).tiny()[0], **options)


def made(config, layer: LayerInfo | None = None, seed: int = 0):
    """The module, its parameters noisy: zeros at the start would hide what stands behind them."""
    layer = LayerInfo(count=2) if layer is None else layer
    graph, params = nnx.split(jax.jit(lambda: config.make(DIM, layer=layer, rngs=nnx.Rngs(seed)))())
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.15 * rng.normal(size=x.shape).astype(np.float32), params))


@jax.jit
def run(mixer, x, segment_ids):
    return mixer(x, None, Context.of(*x.shape[:2], segment_ids=segment_ids)[0])[0]


def x_of(seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, DIM)), dtype)


def retention(w, config: RetNet, x, ids):
    """What RetNet without its norm reads from all tokens of a document, near and far alike in both directions."""
    q, k, v, gate, o = (np.asarray(w[name].kernel[...], np.float64) for name in ("q", "k", "v", "gate", "o"))
    q, k, v = (np.einsum("td,dhk->thk", x, kernel) for kernel in (q, k, v))
    half = config.head_dim // 2
    q, k = (z[..., :half] + 1j * z[..., half:] for z in (q, k))
    frequency = config.rope_theta ** (-np.arange(half) / half)
    log_decay = np.log1p(-(2.0 ** (-5.0 - np.arange(config.num_heads)))).astype(np.float32).astype(np.float64)
    read = np.zeros_like(v)
    for document in set(ids[ids > 0].tolist()):
        members = np.flatnonzero(ids == document)
        for a, t in enumerate(members):
            for b, s in enumerate(members):
                distance = abs(a - b)
                turned = np.exp(1j * distance * frequency)
                score = np.real((q[t] * k[s].conj() * turned).sum(-1)) * config.head_dim**-0.5
                read[t] += (score * np.exp(log_decay * distance))[:, None] * v[s]
    g = np.einsum("td,dhk->thk", x, gate)
    return np.einsum("thk,hkd->td", read * g / (1 + np.exp(-g)), o)


def test_without_a_norm_every_token_of_the_document_counts_once():
    """Against the double sum over pairs, which knows nothing of directions."""
    config = tiny("retnet")
    mixer = made(config)
    mixer.ahead.norm = Same()
    parts = {name: getattr(mixer.ahead.qkv, name) for name in ("q", "k", "v", "o")} | {"gate": mixer.ahead.gate}
    with jax.enable_x64(True):
        x = x_of(dtype=jnp.float64)
        y = np.asarray(run(mixer, x, IDS))
    expected = np.stack(
        [retention(parts, config.inner, *row) for row in zip(np.asarray(x), np.asarray(IDS), strict=True)]
    )
    assert_close(y * REAL, expected * REAL, TOL.f64)


@pytest.mark.parametrize("inner", ["gated_deltanet", "rwkv7"])
def test_the_passes_are_those_of_the_inner_mixer(inner):
    """Forward, backward over rows turned round by hand, and every token alone."""
    both, sums = made(tiny(inner)), made(tiny(inner, subtract_self=False))
    f, x = both.ahead, x_of()
    alone = jnp.where(IDS > 0, jnp.arange(1, T + 1), 0)
    forward, backward, own = run(f, x, IDS), run(f, x[:, ::-1], IDS[:, ::-1])[:, ::-1], run(f, x, alone)
    assert np.linalg.norm(own * REAL) > 0.1 * np.linalg.norm(forward * REAL)
    assert_close(run(both, x, IDS) * REAL, (forward + backward - own) * REAL, TOL.f32_forward)
    assert_close(run(sums, x, IDS) * REAL, (forward + backward) * REAL, TOL.f32_forward)
    single = run(both, x, alone)
    assert_close(single * REAL, own * REAL, 2 * TOL.f32_forward)
    turned = run(both, x[:, ::-1], IDS[:, ::-1])[:, ::-1]
    assert_close(turned * REAL, run(both, x, IDS) * REAL, TOL.f32_forward)


def test_weights_of_its_own_for_each_direction():
    """Equal weights are shared weights; else each direction has its own, and self is their mean."""
    shared, separate, x = made(tiny("retnet")), made(tiny("retnet", share_weights=False)), x_of()
    f, g = separate.ahead, separate.back
    alone = jnp.where(IDS > 0, jnp.arange(1, T + 1), 0)
    forward, backward = run(f, x, IDS), run(g, x[:, ::-1], IDS[:, ::-1])[:, ::-1]
    own = 0.5 * (run(f, x, alone) + run(g, x, alone))
    assert_close(run(separate, x, IDS) * REAL, (forward + backward - own) * REAL, TOL.f32_forward)
    assert np.linalg.norm(run(f, x, IDS) - run(g, x, IDS)) > 0.1
    separate.ahead, separate.back = shared.ahead, nnx.merge(*nnx.split(shared.ahead))
    assert_close(run(separate, x, IDS) * REAL, run(shared, x, IDS) * REAL, TOL.f32_forward)


@pytest.mark.parametrize("share_weights", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_values_that_cross_layers_cross_within_their_pass(share_weights):
    """RWKV-7's first value: that of the forward pass goes to forward passes, that of the backward pass to its own."""
    config = tiny("rwkv7", share_weights=share_weights, subtract_self=False)
    first = made(config, LayerInfo(0, 2, True))
    second = made(config, LayerInfo(1, 2, False), seed=1)
    assert first.ahead.value is None and second.ahead.value is not None
    x = x_of()

    @jax.jit
    def two(first, second, x):
        ctx, _ = Context.of(B, T, segment_ids=IDS)
        plain = ctx.share(value_first=jnp.full((B, T, 4, 8), jnp.nan))  # of another RWKV-7 in the model
        middle, _, after = first(x, None, plain)
        return middle, second(middle, None, after)[0]

    @jax.jit
    def by_hand(first, second, x, middle, ids):
        ctx, _ = Context.of(B, T, segment_ids=ids)
        _, _, ctx = first(x, None, ctx)
        return second(middle, None, ctx)[0]

    middle, y = two(first, second, x)
    forward = by_hand(first.ahead, second.ahead, x, middle, IDS)
    back = (first.ahead, second.ahead) if share_weights else (first.back, second.back)
    backward = by_hand(*back, x[:, ::-1], middle[:, ::-1], IDS[:, ::-1])[:, ::-1]
    assert_close(y * REAL, (forward + backward) * REAL, TOL.f32_forward)


def test_layers_share_values_with_those_of_the_same_inner_mixer():
    names = [
        registry.get("mixer", "rwkv7").tiny()[0].shares,
        tiny("rwkv7").shares,
        tiny("rwkv7", share_weights=False).shares,
        tiny("rwkv7", subtract_self=False).shares,
        tiny("retnet").shares,
    ]
    assert len(set(names)) == 5 and tiny("rwkv7").shares == tiny("rwkv7").replace().shares
    assert RetNet(num_heads=2).shares == RetNet(num_heads=4).shares == "retnet"


def test_what_is_refused():
    with pytest.raises(ValueError, match="expected a causal recurrent mixer, got softmax_attention"):
        Bidirectional(inner="softmax_attention")
    with pytest.raises(ValueError, match="expected a causal recurrent mixer, got bidirectional"):
        Bidirectional(inner="bidirectional")
    mixer = made(tiny("retnet"))
    with pytest.raises(ValueError, match="state: expected None, for a bidirectional mixer sees whole rows, got one"):
        mixer(x_of(), (), Context.of(B, T)[0])
    with pytest.raises(UserError, match="pattern: expected causal mixers in a language model, got bidirectional"):
        load(LMConfig, None, ["pattern=[{mixer: bidirectional}]"])


def test_flops_are_those_of_the_passes():
    subject = Subject.of("mixer", "bidirectional")
    once = subject.config.inner.flops(DIM, T)
    for options, passes in (({}, 3), ({"share_weights": False}, 4), ({"subtract_self": False}, 2)):
        assert subject.config.replace(**options).flops(DIM, T) == passes * once
