"""The inputs of every golden case: fixed, random, small; numpy only, so that both sides can make them."""

import numpy as np

BATCH, TIME, HEADS, WIDTH, VALUE = 1, 40, 2, 8, 8  # more than one chunk of 32


def _qkv(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shape = (BATCH, TIME, HEADS)
    return {name: rng.normal(size=(*shape, n)) for name, n in (("q", WIDTH), ("k", WIDTH), ("v", VALUE))}


def _state(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"state": rng.normal(size=(BATCH, HEADS, WIDTH, VALUE))}


def _unit(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**inputs, "k": inputs["k"] / np.linalg.norm(inputs["k"], axis=-1, keepdims=True)}


def _decay(rng: np.random.Generator, *more: int) -> dict[str, np.ndarray]:
    return {"log_decay": -np.exp(rng.uniform(-5, 1, size=(BATCH, TIME, HEADS, *more)))}


def _beta(rng: np.random.Generator, time: int = TIME) -> dict[str, np.ndarray]:
    return {"beta": rng.uniform(0.05, 1, size=(BATCH, time, HEADS))}


def _linear(rng):
    return {**_qkv(rng), **_state(rng)}


def _stateless(rng):
    return _qkv(rng)


def _scalar(rng):
    return {**_qkv(rng), **_decay(rng), **_state(rng)}


def _diagonal(rng):
    return {**_qkv(rng), **_decay(rng, WIDTH), **_state(rng)}


def _delta(rng):
    return {**_unit(_qkv(rng)), **_beta(rng), **_state(rng)}


def _gated_delta(rng):
    return {**_delta(rng), **_decay(rng)}


def _kimi_delta(rng):
    return {**_delta(rng), **_decay(rng, WIDTH)}


def _rank_one(rng):
    inputs = {**_qkv(rng), **_decay(rng, WIDTH), **_state(rng)}
    removed = rng.normal(size=inputs["q"].shape)
    removed /= np.linalg.norm(removed, axis=-1, keepdims=True)
    return {**inputs, "r": removed, "p": -removed * rng.uniform(0, 1, size=removed.shape)}


def _delta_product(rng):
    inputs = {**_qkv(rng), **_decay(rng), **_state(rng), **_beta(rng, 2 * TIME)}
    more = {
        "k": rng.normal(size=(BATCH, 2 * TIME, HEADS, WIDTH)),
        "v": rng.normal(size=(BATCH, 2 * TIME, HEADS, VALUE)),
    }
    return _unit({**inputs, **more})


def _rwkv6(rng):
    return {**_diagonal(rng), "u": rng.normal(size=(HEADS, WIDTH))}


def _hgrn(rng):
    return {"x": rng.normal(size=(BATCH, TIME, 16)), "log_decay": -np.exp(rng.uniform(-5, 1, size=(BATCH, TIME, 16)))}


def _slots(rng):
    decay = -np.exp(rng.uniform(-5, 1, size=(BATCH, TIME, HEADS, 6)))
    return {**_qkv(rng), "s": 1 - np.exp(decay), "log_decay": decay}


MAKERS = {
    "linear_attention": _linear,
    "retention": _stateless,
    "simple_gla": _scalar,
    "gla": _diagonal,
    "delta_rule": _delta,
    "gated_delta_rule": _gated_delta,
    "qwen3_next_delta_rule": _gated_delta,
    "kimi_delta_attention": _kimi_delta,
    "rank_one": _rank_one,
    "gated_delta_product": _delta_product,
    "rwkv6": _rwkv6,
    "hgrn": _hgrn,
    "gated_slots": _slots,
}


def make(name: str) -> dict[str, np.ndarray]:
    """The inputs of a case, float32; each case has a seed of its own."""
    rng = np.random.default_rng(sum(map(ord, name)))
    return {key: x.astype(np.float32) for key, x in MAKERS[name](rng).items()}
