"""Random inputs that golden cases share: fixed, small; numpy only, so that both sides can make them."""

import numpy as np

BATCH, TIME, HEADS, WIDTH, VALUE = 1, 40, 2, 8, 8  # more than one chunk of 32


def qkv(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """``q``, ``k`` and ``v``."""
    shape = (BATCH, TIME, HEADS)
    return {name: rng.normal(size=(*shape, n)) for name, n in (("q", WIDTH), ("k", WIDTH), ("v", VALUE))}


def state(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A ``state`` to start from."""
    return {"state": rng.normal(size=(BATCH, HEADS, WIDTH, VALUE))}


def unit(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs with keys of length one."""
    return {**inputs, "k": inputs["k"] / np.linalg.norm(inputs["k"], axis=-1, keepdims=True)}


def decay(rng: np.random.Generator, *more: int) -> dict[str, np.ndarray]:
    """``log_decay`` per head, or per head and channel."""
    return {"log_decay": -np.exp(rng.uniform(-5, 1, size=(BATCH, TIME, HEADS, *more)))}


def beta(rng: np.random.Generator, time: int = TIME) -> dict[str, np.ndarray]:
    """Write strengths ``beta``."""
    return {"beta": rng.uniform(0.05, 1, size=(BATCH, time, HEADS))}


def scaled(q):
    """Queries times K^-1/2, which our ops leave to the caller."""
    return q * q.shape[-1] ** -0.5
