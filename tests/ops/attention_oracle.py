"""Softmax attention as a loop over documents, queries and heads in numpy float64: shares no code with the ops."""

import numpy as np

# Packed documents; padding left, inside and right of them (and one id that returns); a row that is all padding.
PACKED = [
    [4] * 11 + [2] * 1 + [9] * 20 + [4] * 13,
    [0] * 6 + [3] * 9 + [0] * 4 + [3] * 12 + [0] * 2 + [5] * 9 + [3] * 3,
]
IDS = np.array([*PACKED, [0] * 45], np.int32)


def documents(row) -> list[list[int]]:
    """The times of each run of one row of segment ids."""
    runs, current = [], 0
    for time, identity in enumerate(row):
        if identity == 0:
            continue
        if identity != current:
            runs.append([])
        current = identity
        runs[-1].append(time)
    return runs


def loop(q, k, v, ids, *, causal=True, window=None, sinks=0, q_sink=None, scale=None, cap=None):
    """Attention of every query to the keys of its own document, one query and one head at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    q_sink = q if q_sink is None else np.asarray(q_sink, np.float64)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    group = q.shape[2] // k.shape[2]
    o = np.zeros((*q.shape[:3], v.shape[3]))
    for b in range(q.shape[0]):
        for run in documents(ids[b]):
            for n, i in enumerate(run):
                start = 0 if window is None else max(0, n + 1 - window)
                near = run[start : n + 1] if causal else run
                far = run[: min(sinks, start)]
                for h in range(q.shape[2]):
                    logits = [scale * q[b, i, h] @ k[b, j, h // group] for j in near]
                    logits += [scale * q_sink[b, i, h] @ k[b, j, h // group] for j in far]
                    logits = np.array(logits) if cap is None else cap * np.tanh(np.array(logits) / cap)
                    weights = np.exp(logits - np.max(logits))
                    o[b, i, h] = weights @ v[b, near + far, h // group] / weights.sum()
    return o


def pattern(q, k, v, ids, sees, *, scale=None):
    """Attention of every query to the positions of its own document that ``sees(head, i, j)`` allows; 0 if none."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    group = q.shape[2] // k.shape[2]
    o = np.zeros((*q.shape[:3], v.shape[3]))
    for b in range(q.shape[0]):
        for run in documents(ids[b]):
            for n, i in enumerate(run):
                for h in range(q.shape[2]):
                    near = [j for m, j in enumerate(run) if sees(h, n, m)]
                    if near:
                        logits = np.array([scale * q[b, i, h] @ k[b, j, h // group] for j in near])
                        weights = np.exp(logits - logits.max())
                        o[b, i, h] = weights @ v[b, near, h // group] / weights.sum()
    return o


def arrays(seed: int, *shapes, dtype=np.float32) -> list[np.ndarray]:
    """Normal random arrays."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(dtype) for shape in shapes]


def heads(seed: int, batch: int, time: int, *, hq=4, hk=2, d=8, v=6, dtype=np.float32) -> list[np.ndarray]:
    """q, k, v and the gradient of the output."""
    shapes = (batch, time, hq, d), (batch, time, hk, d), (batch, time, hk, v), (batch, time, hq, v)
    return arrays(seed, *shapes, dtype=dtype)
