"""What devices exchange where a sequence is split over them, read off the compiled program: nothing grows with T.

The gradient of a loss is compiled, so that the backward pass is in it. A collective inside a loop counts once.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from effarch import axes, registry
from effarch.bench.compiled import counts
from effarch.bench.hlo import parse
from effarch.distill.chunked import chunked_cross_entropy, chunked_top_k_loss
from effarch.distill.divergences import LogitLoss
from effarch.distill.objectives import next_token
from effarch.distill.top_k import TopK
from effarch.nn.head import Head
from effarch.ops.attention import softmax_attention, window_attention
from effarch.ops.conv import causal_conv
from effarch.ops.recurrence import Delta, linear_recurrence
from effarch.parallel.mesh import MeshConfig, make_mesh
from effarch.parallel.rules import make_rules
from tests.conformance.harness import ALL, Subject, forward
from tests.models import tiny
from tests.parallel.test_context import rules

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")
TIME = 512

#: Ways of attention that go around the ring, and rows that are reversed: a shard goes to another device, O(T / n).
#: Sparse attention gathers keys.
HOPS = (
    *("softmax_attention", "forgetting_attention", "encoder_attention", "mla", "bidirectional"),
    *("sparse_transformer", "bigbird", "moba", "nsa"),
)


def exchanged(loss, floats, ids):
    """Bytes by collective, in the gradient of ``loss(*floats, ids)``: those of 3 dims and more are ``[B, T, ...]``.

    Shapes instead of arrays: they are split over devices before and after, all others are whole.
    """
    table = rules()
    split, whole = (NamedSharding(table.mesh, PartitionSpec(*spec)) for spec in ((None, "context"), ()))

    def placed(x):
        place = split if isinstance(x, jax.ShapeDtypeStruct) else whole
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    def ruled(floats, ids):
        with axes.rules(table):
            return jax.grad(lambda floats: loss(*floats, ids))(floats)

    floats = jax.tree.map(placed, floats)
    ids = None if ids is None else jax.ShapeDtypeStruct(ids.shape, ids.dtype, sharding=whole)
    out = jax.tree.map(lambda x: x.sharding, floats)
    return collectives(jax.jit(ruled, out_shardings=out).lower(floats, ids).compile().as_text())


def collectives(text):
    """Bytes by collective of a compiled program."""
    found = {}
    for computation in parse(text).computations.values():
        for one in computation.instructions:
            if one.opcode.removesuffix("-start") in COLLECTIVES:
                found[one.opcode] = found.get(one.opcode, 0) + sum(shape.bytes for shape in one.shapes)
    return found


def row(time, *dims):
    return jax.ShapeDtypeStruct((2, time, *dims), jnp.float32)


def of(loss, time, *shapes):
    return exchanged(loss, tuple(row(time, *shape) for shape in shapes), jax.ShapeDtypeStruct((2, time), jnp.int32))


def test_recurrences():
    def loss(q, k, v, beta, log_decay, ids):
        transition = Delta(jax.nn.sigmoid(beta), -jax.nn.softplus(log_decay))
        return (linear_recurrence(q, k, v, transition=transition, segment_ids=ids)[0] ** 2).sum()

    shapes = (2, 8), (2, 8), (2, 8), (2,), (2,)
    assert of(loss, TIME, *shapes) == of(loss, 4 * TIME, *shapes) != {}


def test_convolutions():
    def loss(x, weight, ids):
        return (causal_conv(x, weight, segment_ids=ids)[0] ** 2).sum()

    def bytes_at(time):
        return exchanged(loss, (row(time, 6), jnp.zeros((4, 6))), jax.ShapeDtypeStruct((2, time), jnp.int32))

    assert bytes_at(TIME) == bytes_at(4 * TIME) != {}


def test_a_whole_training_step():
    """Embedding, layers, head and loss, whose chunks are each device's own."""
    graph, params = tiny.split(tiny.config("retnet", layers=2).replace(vocab_size=64))
    table = rules()
    whole = NamedSharding(table.mesh, PartitionSpec())  # batches too: every device has the ids of its rows
    trained, fixed = nnx.split_state(params, nnx.Param, ...)

    def loss(trained, rows):
        with axes.rules(table):
            return jax.value_and_grad(lambda p: next_token(graph, chunk=16)(p, fixed, rows, None)[0])(trained)

    def bytes_at(time):
        kinds = {"tokens": jnp.int32, "segment_ids": jnp.int32, "loss_mask": jnp.float32}
        rows = {name: jax.ShapeDtypeStruct((2, time), kind, sharding=whole) for name, kind in kinds.items()}
        lowered = jax.jit(loss, out_shardings=whole).lower(jax.device_put(trained, whole), rows)
        return collectives(lowered.compile().as_text())

    assert bytes_at(TIME) == bytes_at(4 * TIME) != {}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("vocab_chunk", [None, 16])
def test_a_head_split_over_fsdp_is_sent_once(taught, vocab_chunk):
    """And not in every chunk of the loss, or slice of the vocabulary; loops counted as often as they run.

    Of the text or of a teacher's most likely tokens: what is looked up in a row stays where the row is.
    """
    dim, vocab, chunk = 256, 64, 16
    table = make_rules(make_mesh(MeshConfig(data=1, fsdp=8)))
    split = NamedSharding(table.mesh, PartitionSpec("fsdp"))
    weight = jax.ShapeDtypeStruct((dim, vocab), jnp.float32, sharding=split)

    def loss(hidden, weight, targets, mask, *teacher):
        given, more = (targets, mask), {"chunk": chunk, "vocab_chunk": vocab_chunk}
        if taught:
            return chunked_top_k_loss(hidden, Head(weight), TopK(*teacher), *given, LogitLoss(), **more).total
        return chunked_cross_entropy(hidden, Head(weight), *given, **more).total

    def ruled(*given):
        with axes.rules(table):
            return jax.grad(loss, argnums=(0, 1))(*given)

    def gathered(chunks):
        kinds = [((dim,), jnp.float32), ((), jnp.int32), ((), jnp.float32), ((4,), jnp.int32), ((4,), jnp.float32)]
        x, *given = (jax.ShapeDtypeStruct((8, chunks * chunk, *s), d, sharding=split) for s, d in kinds)
        program = jax.jit(ruled, out_shardings=(split, split)).lower(x, weight, *given).compile()
        return sum(said.sent for said in counts(program).collectives if said.kind == "all-gather")

    assert gathered(2) == gathered(6) == 7 * dim * vocab * 4 // 8  # what one device sends of it


@pytest.mark.parametrize("sinks", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_windows(sinks):
    def loss(q, k, v, ids):
        return (window_attention(q, k, v, window=48, sinks=sinks, segment_ids=ids) ** 2).sum()

    shapes = (4, 8), (2, 8), (2, 8)
    assert of(loss, TIME, *shapes) == of(loss, 4 * TIME, *shapes) != {}


def test_a_hop_of_the_ring_is_one_shard():
    """Keys, values, runs and positions forward; the same and the gradients of keys and values backward."""

    def loss(q, k, v, ids):
        return (softmax_attention(q, k, v, segment_ids=ids) ** 2).sum()

    for time in (TIME, 4 * TIME):
        found = of(loss, time, (4, 8), (2, 8), (2, 4))
        shard = 2 * time // 8
        keys, where = shard * 2 * (8 + 4) * 4, shard * 2 * 4
        assert found.pop("collective-permute") == (keys + where) + (2 * keys + where)
        assert sum(found.values()) < 1024  # runs and positions of the row


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind_name", [p for p in ALL if registry.get(*p).context_parallel and p[1] not in HOPS], ids=lambda p: p[1]
)
def test_mixers(kind_name):
    subject = Subject.of(*kind_name)
    if subject.config.fixed_length:
        pytest.skip(f"{subject.name}: fixed_length is True")
    trained, fixed = nnx.split_state(subject.parameters(), nnx.Param, ...)

    def loss(trained, x, ids):
        parameters = nnx.merge_state(trained, fixed)
        return (forward(subject.graph, "chunkwise", axes.current(), parameters, x, None, None, ids)[0] ** 2).sum()

    def bytes_at(time):
        return exchanged(loss, (trained, row(time, subject.dim)), jax.ShapeDtypeStruct((2, time), jnp.int32))

    assert bytes_at(TIME) == bytes_at(4 * TIME)
