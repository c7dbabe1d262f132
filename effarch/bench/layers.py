"""Programs of a mixer, of a block around it, and of a whole language model."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.bench.decode import filled_state, greedy
from effarch.bench.ops import DECODED
from effarch.bench.program import Program, filled, gradient_of, tree_bytes
from effarch.distill.chunked import chunked_cross_entropy
from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig
from effarch.mixers.context import Progress
from effarch.models.block import Block, BlockConfig
from effarch.models.lm import LM, LMConfig, LMState, make_lm
from effarch.typing import Array, PyTree

Parts = tuple[PyTree, PyTree]  # parameters, and what is not trained


def mixer_program(config: MixerConfig, mode: str, *, dim: int, batch: int, length: int, dtype: Any) -> Program:
    """A mixer in a model of width ``dim``."""

    def make() -> nnx.Module:
        return config.make(dim, layer=LayerInfo(dtype=dtype), rngs=nnx.Rngs(0))

    def call(mixer: Any, x: Array, state: PyTree, ctx: Context) -> tuple[Array, PyTree]:
        return mixer(x, state, ctx)[:2]

    return _layer(make, call, config.flops, mode, dim, batch, length, dtype)


def block_program(config: BlockConfig, mode: str, *, dim: int, batch: int, length: int, dtype: Any) -> Program:
    """A mixer and a channel mixer behind their norms, with residuals."""

    def make() -> nnx.Module:
        return Block(config, dim, norm="rms", eps=1e-6, layer=LayerInfo(dtype=dtype), rngs=nnx.Rngs(0))

    def call(block: Any, x: Array, state: PyTree, ctx: Context) -> tuple[Array, PyTree]:
        return block(x, state, ctx)[:2]

    def flops(dim: int, time: int) -> int:
        return sum(part.flops(dim, time) for part in (config.mixer, config.channel) if part is not None)

    return _layer(make, call, flops, mode, dim, batch, length, dtype)


def _parts(make: Callable[[], nnx.Module], dtype: Any) -> tuple[Any, Callable[[Array], Parts]]:
    """The graph, and parameters in ``dtype`` drawn with a key."""
    graph = nnx.split(jax.eval_shape(make), nnx.Param, ...)[0]

    def drawn(key: Array) -> Parts:
        _, params, rest = nnx.split(make(), nnx.Param, ...)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        return params, rest

    return graph, drawn


def _layer(
    make: Callable[[], nnx.Module],
    call: Callable[..., tuple[Array, PyTree]],
    flops: Callable[[int, int], int],
    mode: str,
    dim: int,
    batch: int,
    length: int,
    dtype: Any,
) -> Program:
    graph, parts = _parts(make, dtype)

    def state(rows: int) -> PyTree:
        return cast(Mixer, make()).init_state(rows, length)

    held = tree_bytes(jax.eval_shape(lambda: state(1)))

    def draw(key: Array, time: int) -> Array:
        return jax.random.normal(key, (batch, time, dim), dtype)

    def forward(params: PyTree, x: Array, rest: PyTree) -> Array:
        ctx, _ = Context.of(batch, x.shape[1])
        return call(nnx.merge(graph, params, rest), x, None, ctx)[0]

    if mode == "training":

        def given(key: Array) -> tuple[Any, ...]:
            one, two, three = jax.random.split(key, 3)
            params, rest = parts(one)
            return params, draw(two, length), rest, draw(three, length)

        return Program(gradient_of(forward, 2), given, batch * length, 3 * batch * flops(dim, length), held)
    if mode == "prefill":

        def read(params: PyTree, rest: PyTree, state: PyTree, x: Array) -> tuple[Array, PyTree]:
            ctx, _ = Context.of(batch, length, progress=Progress.start(batch))
            return call(nnx.merge(graph, params, rest), x, state, ctx)

        def inputs(key: Array) -> tuple[Any, ...]:
            one, two = jax.random.split(key)
            return (*parts(one), state(batch), draw(two, length))

        return Program(read, inputs, batch * length, batch * flops(dim, length), held, donated=(2,))

    def decode(params: PyTree, rest: PyTree, state: PyTree, x: Array) -> tuple[Array, PyTree]:
        module = nnx.merge(graph, params, rest)
        before = Progress.start(batch)
        seen = jnp.full((batch,), length - DECODED, jnp.int32)

        def step(carry: tuple[PyTree, Progress], token: Array) -> tuple[tuple[PyTree, Progress], Array]:
            state, progress = carry
            ctx, progress = Context.of(batch, 1, progress=progress, form="recurrent")
            y, state = call(module, token, state, ctx)
            return (state, progress), y

        progress = Progress(seen, before.last_segment + 1)
        (state, _), y = jax.lax.scan(step, (state, progress), jnp.moveaxis(x, 1, 0)[:, :, None])
        return y, state

    def carried(key: Array) -> tuple[Any, ...]:
        one, two, three = jax.random.split(key, 3)
        return (*parts(one), filled(two, lambda: state(batch), length - DECODED), draw(three, DECODED))

    if length <= DECODED:
        raise ValueError(f"lengths: expected more than the {DECODED} tokens that are decoded, got {length}")
    done = batch * (flops(dim, length) - flops(dim, length - DECODED))
    return Program(decode, carried, batch * DECODED, done, held, donated=(2,), rounds=DECODED)


def model_program(config: LMConfig, mode: str, *, batch: int, length: int) -> Program:
    """A language model: loss and gradients of next-token prediction, a prompt read, or tokens decoded greedily."""
    graph = nnx.split(jax.eval_shape(lambda: make_lm(config)), nnx.Param, ...)[0]

    def parts() -> Parts:
        _, params, rest = nnx.split(make_lm(config), nnx.Param, ...)
        return params, rest

    def tokens(key: Array, time: int) -> Array:
        return jax.random.randint(key, (batch, time), 0, config.vocab_size, jnp.int32)

    held, flops = config.state_bytes(length), config.flops
    if mode == "training":

        def loss(params: PyTree, rest: PyTree, tokens: Array) -> Array:
            lm: LM = nnx.merge(graph, params, rest)
            hidden = lm.hidden(tokens[:, :-1]).hidden
            return chunked_cross_entropy(hidden, lm.head, tokens[:, 1:], jnp.ones((batch, length), jnp.int32)).total

        run = jax.value_and_grad(loss)
        return Program(
            run, lambda key: (*parts(), tokens(key, length + 1)), batch * length, 3 * batch * flops(length), held
        )
    if mode == "prefill":

        def read(params: PyTree, rest: PyTree, state: LMState, tokens: Array) -> tuple[Array, Any]:
            lm: LM = nnx.merge(graph, params, rest)
            output = lm.hidden(tokens, state)
            return lm.head(output.hidden[:, -1]), output.state

        def inputs(key: Array) -> tuple[Any, ...]:
            params, rest = parts()
            return params, rest, nnx.merge(graph, params, rest).init_state(batch, length), tokens(key, length)

        return Program(read, inputs, batch * length, batch * flops(length), held, donated=(2,))
    if length <= DECODED:
        raise ValueError(f"lengths: expected more than the {DECODED} tokens that are decoded, got {length}")
    flat = nnx.split(jax.eval_shape(lambda: make_lm(config).unstacked()))[0]

    def decode(params: PyTree, state: LMState, token: Array) -> tuple[Array, LMState]:
        return greedy(nnx.merge(flat, params), DECODED, token, state)

    def carried(key: Array) -> tuple[Any, ...]:
        lm = make_lm(config).unstacked()
        return nnx.split(lm)[1], filled_state(lm, batch, length, DECODED), tokens(key, 1)[:, 0]

    done = batch * (flops(length) - flops(length - DECODED))
    return Program(decode, carried, batch * DECODED, done, held, donated=(1,), rounds=DECODED)
