"""The student's own samples as training rows, and the loss on them."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.data.targets import shift
from effarch.distill import objectives
from effarch.distill.losses import LogitLoss
from effarch.distill.on_policy import on_policy, written
from effarch.models.generate import Sampling, generate
from tests.conformance.test_mixers import same_trees
from tests.models import tiny
from tests.tolerances import TOL

B, T = 4, 16
STUDENT = tiny.config("retnet", layers=2)
GREEDY = Sampling(temperature=0)


@lru_cache
def greedily() -> list[list[int]]:
    """What the student writes after the last documents of the first two prompts."""
    tokens = np.asarray(tiny.tokens(B, T, seed=3))
    prompts = [tokens[0, 5:8].tolist(), tokens[1, :6].tolist()]
    return generate(tiny.model(STUDENT), prompts, max_new_tokens=8, sampling=GREEDY)


@lru_cache
def end() -> int:
    """A token that ends the first text somewhere in the middle, and that no prompt holds."""
    prompt = set(np.asarray(tiny.tokens(B, T, seed=3)).ravel().tolist())
    return next(token for token in greedily()[0][1:] if token not in prompt)


def batch() -> dict:
    """Packed documents; a row that ends in the prompt's half; one whose last document has ended; one without text."""
    segments = np.asarray([[1] * 5 + [2] * 11, [1] * 6 + [0] * 10, [1] * 8 + [2] * 8, [0] * 16], np.int32)
    tokens = np.array(tiny.tokens(B, T, seed=3)) * (segments > 0)
    tokens[2, 7] = end()
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segment_ids": jnp.asarray(segments),
        "loss_mask": jnp.asarray(segments > 0, jnp.float32),
    }


@lru_cache
def writer(sampling: Sampling):
    graph, params = nnx.split(tiny.model(STUDENT))
    options = {"prompt": 0.5, "sampling": sampling, "end_token": end()}
    write = jax.jit(lambda p, *args: written(nnx.merge(graph, p), *args, **options), compiler_options=tiny.FAST)
    return lambda key: jax.tree.map(np.asarray, write(params, batch(), key))


def test_what_is_written_is_what_generate_writes():
    """Greedy, of the last document of each prompt; the token that ends a text counts, and nothing behind it."""
    rows, given = writer(GREEDY)(jax.random.key(0)), batch()
    lengths = []
    for row, ids in enumerate(greedily()):
        ids = ids[: ids.index(end()) + 1] if end() in ids else ids
        lengths.append(len(ids))
        assert rows["tokens"][row, 8:].tolist() == ids + [0] * (8 - len(ids))
        assert rows["loss_mask"][row].tolist() == [0] * 8 + [1] * len(ids) + [0] * (8 - len(ids))
        assert (rows["segment_ids"][row, 8:] == (2 - row) * rows["loss_mask"][row, 8:]).all()
    assert 1 < lengths[0] <= 8
    assert not rows["loss_mask"][2:].any() and not rows["segment_ids"][2:, 8:].any()
    for name in ("tokens", "segment_ids"):
        assert (rows[name][:, :8] == np.asarray(given[name])[:, :8]).all()
    _, targets, mask = (np.asarray(x) for x in shift(rows))
    assert mask[0].sum() == lengths[0]  # the first token written is predicted from the prompt
    assert mask[1].sum() == lengths[1] - 1  # where padding stands between, it is not
    assert (targets[mask > 0] < tiny.VOCAB).all()


def test_draws_depend_on_the_key_alone():
    sampled = writer(Sampling())
    assert tiny.same_bits(sampled(jax.random.key(1)), sampled(jax.random.key(1)))
    assert (sampled(jax.random.key(1))["tokens"] != sampled(jax.random.key(2))["tokens"]).any()


def test_the_loss_is_that_of_the_written_batch_and_sampling_has_no_gradient():
    teacher_graph, frozen = nnx.split(tiny.model(tiny.config("softmax_attention", layers=2)))
    graph, params, rest = nnx.split(tiny.model(STUDENT), nnx.Param, ...)
    of_batch = objectives.logits(teacher_graph, graph, LogitLoss(kind="reverse_kl"), chunk=8)

    @partial(jax.jit, compiler_options=tiny.FAST)
    def mixed(params, frozen, data, fraction, rng):
        options = {"prompt": 0.5, "sampling": Sampling(), "end_token": end()}
        loss = on_policy(graph, of_batch, fraction=fraction, **options)

        def total(params):
            total, weight, metrics = loss(params, rest, data, rng, frozen)
            return total, (weight, metrics)

        return jax.value_and_grad(total, has_aux=True)(params)

    key = jax.random.key(5)
    own = writer(Sampling())(jax.random.split(key, 3)[1])
    writes, given, text = (mixed(params, frozen, *x, key) for x in ((batch(), 1.0), (own, 0.0), (batch(), 0.0)))
    for (_, (weight, metrics)), share, data in ((writes[0], 1, own), (given[0], 0, own), (text[0], 0, batch())):
        assert metrics.pop("on_policy") == share * weight and weight == shift(data)[2].sum() > 0
    same_trees(writes, given, TOL.f32_grad)
    assert float(writes[0][0]) != float(text[0][0])
    shares = [mixed(params, frozen, batch(), 0.25, jax.random.key(n))[0][1][1]["on_policy"] > 0 for n in range(40)]
    assert 3 < sum(map(bool, shares)) < 20
