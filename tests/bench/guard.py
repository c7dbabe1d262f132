"""The figures that must not grow: every mixer and op in training, traced at T and 2 T, compiled at 2 T.

    python -m tests.bench.guard [part of a name ...]        # writes baseline.json anew, prints what differs

Nothing is timed, so the figures are the same on every run: FLOPs of products, loop iterations and bytes alive at once
from the jaxpr, and temporary bytes of the compiled program. They belong to one version of jax and one processor; with
others only the growth from T to 2 T is held.
"""

import tests.conftest  # noqa: F401, I001 (the flags that the tests compile with, before jax starts)

import json
import platform
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import effarch.mixers  # noqa: F401  (registers)
from effarch import registry
from effarch.bench.compiled import memory
from effarch.mixers import Context, LayerInfo
from effarch.ops.attention import softmax_attention, window_attention
from effarch.ops.recurrence import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, linear_recurrence
from effarch.ops.scan import linear_scan
from tests.bench.traced import count

BASELINE = Path(__file__).with_name("baseline.json")
COMMAND = "python -m tests.bench.guard"
T = 512
FATTER = 1.05  # of what the baseline says
GROWTH = 2.1  # from T to 2 T
GROWS = {  # what is known to grow faster
    "nsa": 3.0,  # every query scores all compressed blocks
    "sparse_transformer": 2.9,  # T^1.5: stride is about sqrt(T)
}

Figures = dict[str, int]


def _op(name: str) -> Callable[..., jax.Array]:
    """The op as a function of ``q, k, v, gate``, all ``[1, T, 2, 16]``."""

    def recurrence(transition: Callable[[jax.Array, jax.Array], object]):
        return lambda q, k, v, gate: linear_recurrence(q, k, v, transition=transition(k, -jnp.exp(gate)))[0]

    def per_head(gate: jax.Array) -> jax.Array:
        return gate[..., 0]

    def strength(gate: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(gate[..., 0])

    ops = {
        "constant": recurrence(lambda k, g: Constant(per_head(g)[0, 0])),
        "scalar": recurrence(lambda k, g: Scalar(per_head(g))),
        "diagonal": recurrence(lambda k, g: Diagonal(g)),
        "delta": recurrence(lambda k, g: Delta(strength(g))),
        "gated_delta": recurrence(lambda k, g: Delta(strength(g), per_head(g))),
        "diagonal_plus_rank_one": recurrence(lambda k, g: DiagonalPlusRankOne(g, k, -k * strength(g)[..., None])),
        "linear_scan": lambda q, k, v, gate: linear_scan((-jnp.exp(gate), v), state=jnp.zeros_like(v[:, 0]))[0] * q,
        "blockwise_attention": lambda q, k, v, gate: softmax_attention(q, k, v) * gate,
        "window_attention": lambda q, k, v, gate: window_attention(q, k, v, window=64) * gate,
    }
    return ops[name]


OPS = (
    *("constant", "scalar", "diagonal", "delta", "gated_delta", "diagonal_plus_rank_one"),
    *("linear_scan", "blockwise_attention", "window_attention"),
)
MIXERS = tuple(name for name, config in registry.configs("mixer").items() if not config.fixed_length)
SUBJECTS = (*(f"op/{name}" for name in OPS), *MIXERS)


def _program(subject: str) -> tuple[Callable, Callable[[int], tuple]]:
    """The gradient of a sum of squares for everything that goes in, and its abstract arguments at T."""
    kind, _, op = subject.partition("/")
    if op:
        run = _op(op)

        def of_op(*given: jax.Array) -> jax.Array:
            return (run(*given).astype(jnp.float32) ** 2).sum()

        return jax.jit(jax.grad(of_op, argnums=(0, 1, 2, 3))), lambda t: 4 * (_abstract(1, t, 2, 16),)
    config, dim = registry.get("mixer", kind).tiny()
    module = jax.eval_shape(lambda: config.make(dim, layer=LayerInfo(count=2), rngs=nnx.Rngs(0)))
    graph, trained, fixed = nnx.split(module, nnx.Param, ...)

    def of_mixer(trained, fixed, x: jax.Array) -> jax.Array:
        ctx, _ = Context.of(*x.shape[:2])
        y, _, _ = nnx.merge(graph, trained, fixed)(x, None, ctx)
        return (y.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(of_mixer, argnums=(0, 2))), lambda t: (trained, fixed, _abstract(1, t, dim))


def _abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def measure(subject: str, *, compiles: bool = True) -> tuple[Figures, Figures]:
    """Figures at T and at 2 T; the temporary bytes at 2 T alone, and only where it ``compiles``."""
    program, arguments = _program(subject)
    found = []
    for length in (T, 2 * T):
        traced = program.trace(*arguments(length))
        seen = count(traced.jaxpr)
        found.append({"flops": seen.flops, "loops": seen.loops, "live": seen.live})
    if compiles and (held := memory(traced.lower().compile())):
        found[1]["temporaries"] = held.temporaries
    return found[0], found[1]


def environment() -> str:
    """What the figures hold for."""
    return f"jax {jax.__version__}, {platform.machine()}"


@cache
def baseline() -> Mapping[str, Figures] | None:
    """The figures at 2 T by subject, as committed for this environment; None for any other."""
    return json.loads(BASELINE.read_text()).get(environment()) if BASELINE.exists() else None


def growth(subject: str, once: Figures, twice: Figures) -> list[str]:
    """What grows faster than it may, a line each."""
    limit = GROWS.get(subject, GROWTH)
    return [
        f"{subject}: {name} grow from {once[name]:,} at T = {T} to {twice[name]:,} at {2 * T}, more than {limit} times"
        for name in once
        if twice[name] > limit * once[name] + 1024
    ]


def fatter(subject: str, before: Figures, now: Figures) -> list[str]:
    """What has grown beyond the tolerance, a line each."""
    return [
        f"{subject}: {name} {before[name]:,} -> {value:,} ({_change(before[name], value)}) at T = {2 * T}; "
        f"if that is meant, run {COMMAND} and commit what it writes"
        for name, value in now.items()
        if value > FATTER * before.get(name, value)
    ]


def _change(before: int, now: int) -> str:
    return f"{100 * (now / before - 1):+.1f} %" if before else "new"


def main(words: list[str]) -> int:
    """Rewrites this environment's part of the baseline and prints the differences."""
    kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    before = kept.get(environment(), {})
    chosen = [subject for subject in SUBJECTS if not words or any(word in subject for word in words)]
    after = {name: figures for name, figures in before.items() if name in SUBJECTS}
    for number, subject in enumerate(chosen, 1):
        once, after[subject] = measure(subject)
        old = before.get(subject, {})
        told = [
            f"{name} {old.get(name, 0):,} -> {value:,} ({_change(old.get(name, 0), value)})"
            for name, value in after[subject].items()
            if value != old.get(name)
        ]
        print(f"[{number}/{len(chosen)}] {subject}: {', '.join(told) or 'the same'}", flush=True)
        for line in growth(subject, once, after[subject]):
            print(f"  {line}", flush=True)
    kept[environment()] = dict(sorted(after.items()))
    lines = (f"  {json.dumps(name)}: {_table(figures)}" for name, figures in sorted(kept.items()))
    BASELINE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


def _table(figures: Mapping[str, Figures]) -> str:
    rows = (f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in figures.items())
    return "{\n" + ",\n".join(rows) + "\n  }"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
