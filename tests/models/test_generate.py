"""Generation: one compiled loop, prompts of different lengths, sampling."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from effarch.models.generate import Sampling, generate, sample
from effarch.models.lm import LM
from tests.models import tiny

loop = import_module("effarch.models.generate")
GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 9, 60, 3, 3, 17, 22], [8, 1, 30]]
NAMES = ("rwkv7", "gated_deltanet", "softmax_attention", "sliding_window")
#: A layer of everything that carries a state: one model, one compilation.
MIXED = tiny.config("rwkv7", layers=4).replace(pattern=[tiny.block(name).replace(channel=None) for name in NAMES])
SMALL = tiny.config("retnet", layers=1)


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """The same function, without optimisation."""
    slow = loop._generate
    loop._generate = jax.jit(slow.__wrapped__, static_argnums=(0, 1), compiler_options=tiny.FAST)
    yield
    loop._generate = slow


def naive(lm: LM, prompt: list[int], new: int, longest: int) -> list[int]:
    """Argmax of a full forward pass, again for every token."""
    graph, params = nnx.split(lm)
    ids = list(prompt)
    for _ in range(new):
        row = np.zeros((1, longest), np.int32)
        row[0, : len(ids)] = ids
        real = (np.arange(longest) < len(ids)).astype(np.int32)[None]
        output = tiny.hidden(graph, "chunkwise", (), params, row, None, real)
        ids.append(int(jnp.argmax(lm.head(output.hidden[0, len(ids) - 1]))))
    return ids[len(prompt) :]


def test_greedy_batch_is_each_alone_is_a_loop_over_full_passes():
    """More tokens than the window, so that its ring turns."""
    lm, new = tiny.model(MIXED), 8
    prompts = [*PROMPTS, [44], [2, 50, 31, 7, 19], [12, 12], [33, 4, 21, 59, 6, 11]]
    batch = generate(lm, prompts, max_new_tokens=new, sampling=GREEDY)
    for prompt, row in zip(prompts, batch, strict=True):
        assert row == naive(lm, prompt, new, 15)
    assert generate(lm, PROMPTS[1:], max_new_tokens=new, sampling=GREEDY) == batch[1:2]
    assert len(set(batch[0])) > 2 and len({row[0] for row in batch}) > 2


def test_one_compilation_for_prompts_of_one_shape(monkeypatch):
    lm = tiny.model(SMALL)
    first = generate(lm, PROMPTS, max_new_tokens=5, sampling=GREEDY)
    traced = []
    monkeypatch.setattr(LM, "hidden", lambda *args, **_: traced.append(args) or 1 / 0)
    other = [[1, 2, 3, 4, 5, 6, 7], [40, 41]]
    second = generate(lm, other, max_new_tokens=5, sampling=GREEDY)
    assert not traced and first != second
    with pytest.raises(ZeroDivisionError):
        generate(lm, PROMPTS, max_new_tokens=6, sampling=GREEDY)


def test_memory_does_not_grow_with_the_tokens():
    graph, params = nnx.split(tiny.model(SMALL))
    tokens = jnp.ones((2, 16), jnp.int32)

    def temporaries(new: int) -> int:
        what = loop._Loop(new, Sampling(top_k=5), (1,))
        compiled = loop._generate.lower(graph, what, params, tokens, tokens, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) <= temporaries(64) + 2 * 2 * 4 * 4096  # the tokens themselves, twice


def test_stop_tokens_end_a_row_and_are_not_returned():
    lm = tiny.model(SMALL)
    free = generate(lm, PROMPTS, max_new_tokens=12, sampling=GREEDY)
    stop = free[0][3]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert generate(lm, PROMPTS, max_new_tokens=12, sampling=GREEDY, stop_tokens=(stop,)) == expected
    assert len(expected[0]) <= 3
    firsts = tuple(row[0] for row in free)
    assert generate(lm, PROMPTS, max_new_tokens=12, sampling=GREEDY, stop_tokens=firsts) == [[], []]


def test_seeds():
    lm = tiny.model(SMALL)
    rows = [generate(lm, PROMPTS, max_new_tokens=12, seed=seed) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert all(0 <= i < tiny.VOCAB for row in rows[2] for i in row)


LOGITS = np.asarray([2.0, 1.5, 1.4, 0.3, -0.2, -1.0, -3.0, -9.0])


def filtered(sampling: Sampling) -> np.ndarray:
    """The distribution to draw from, one token at a time."""
    p = np.exp(LOGITS / sampling.temperature)
    order = np.argsort(-p)
    kept = order[: sampling.top_k or len(p)]
    mass, nucleus = 0.0, []
    for i in kept:
        if mass >= (sampling.top_p or 1.0):
            break
        nucleus.append(i)
        mass += p[i] / p[kept].sum()
    q = np.zeros_like(p)
    q[nucleus] = p[nucleus]
    return q / q.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=3.0, top_k=3),
        Sampling(top_p=0.7),
        Sampling(top_p=0.01),
        Sampling(temperature=2.0, top_k=5, top_p=0.8),
        Sampling(top_k=100, top_p=1.0),
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_filtered_softmax(sampling):
    draws = 20_000
    shuffle = np.random.default_rng(0).permutation(8)
    logits = jnp.broadcast_to(jnp.asarray(LOGITS[shuffle], jnp.float32), (draws, 8))
    drawn = np.bincount(np.asarray(sample(logits, jax.random.key(3), sampling)), minlength=8)
    expected = filtered(sampling)[shuffle]
    assert (drawn[expected == 0] == 0).all()
    assert (np.abs(drawn / draws - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_rows_draw_apart_and_greedy_does_not_draw():
    logits = jnp.asarray(np.stack([LOGITS, LOGITS[::-1]]), jnp.bfloat16)
    assert sample(logits, jax.random.key(0), GREEDY).tolist() == [0, 7]
    assert sample(logits, jax.random.key(0), Sampling(top_k=1)).tolist() == [0, 7]
    even = jnp.zeros((64, 8))
    assert len(set(sample(even, jax.random.key(0), Sampling()).tolist())) == 8


def test_errors():
    lm = tiny.model(SMALL)
    with pytest.raises(ValueError, match=r"prompts: expected at least one, none empty, got lengths \[\]"):
        generate(lm, [], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"prompts: expected at least one, none empty, got lengths \[1, 0\]"):
        generate(lm, [[1], []], max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens: expected at least 1, got 0"):
        generate(lm, [[1]], max_new_tokens=0)
    for prompts, stop in (([[1, 61]], ()), ([[-1]], ()), ([[1]], (99,))):
        with pytest.raises(ValueError, match="expected ids below vocab_size 61, got (61|-1|99)"):
            generate(lm, prompts, max_new_tokens=1, stop_tokens=stop)
