"""What devices say to each other, counted in programs that are written by hand, against arithmetic."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from effarch.bench.collectives import KINDS, Collective, collective, group
from effarch.bench.compiled import counts
from effarch.bench.estimate import roofline, times
from effarch.bench.hlo import parse
from effarch.bench.topology import parse as target

N, LOOPS, SIZE = 8, 5, 16 * 32 * 4  # devices, iterations, bytes of what one device holds


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def found(mesh, body) -> list[Collective]:
    """Of a program in which every device has [16, 32] numbers and runs ``body`` in a loop."""

    @partial(jax.shard_map, mesh=mesh, in_specs=P(("a", "b")), out_specs=P(("a", "b")), check_vma=False)
    def run(x):
        return jax.lax.scan(lambda c, _: (body(c), None), x, None, length=LOOPS)[0]

    shape = jax.ShapeDtypeStruct((16 * N, 32), jnp.float32, sharding=NamedSharding(mesh, P(("a", "b"))))
    return list(counts(jax.jit(run).lower(shape).compile()).collectives)


@pytest.mark.parametrize(
    ("kind", "body", "members", "sent"),
    [
        ("all-reduce", lambda x: x + jax.lax.psum(x, "b"), (0, 1, 2, 3), 2 * SIZE * 3 // 4),
        ("all-reduce", lambda x: x + jax.lax.psum(x, "a"), (0, 4), 2 * SIZE // 2),
        ("all-gather", lambda x: x + jax.lax.all_gather(x, "b").sum(0), (0, 1, 2, 3), SIZE * 3),
        ("reduce-scatter", lambda x: jnp.tile(jax.lax.psum_scatter(x, "b", tiled=True), (4, 1)), None, SIZE * 3 // 4),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "b", 0, 0, tiled=True), None, SIZE * 3 // 4),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
            (3, 0),
            SIZE,
        ),
    ],
    ids=("sum", "sum over rows of the mesh", "gather", "scatter", "to all", "permute"),
)
def test_counts_of_a_loop(mesh, kind, body, members, sent):
    (said,) = found(mesh, body)
    assert (said.kind, said.count, said.bytes) == (kind, LOOPS, LOOPS * SIZE)
    assert said.sent == LOOPS * sent
    assert members is None or said.group == members


def test_two_arrays_in_one_call_and_calls_that_are_waited_for():
    text = """HloModule m, replica_count=1, num_partitions=4

ENTRY %main (a: f32[8], b: bf16[4,4]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %b = bf16[4,4]{1,0} parameter(1)
  %sums = (f32[8]{0}, bf16[4,4]{1,0}) all-reduce(%a, %b), replica_groups={}, to_apply=%add
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), replica_groups=[1,4]<=[4], dimensions={0}
  %pass = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,3}}
  %passed = f32[8]{0} collective-permute-done(%pass)
  ROOT %done = f32[32]{0} all-gather-done(%start)
}
"""
    said = {c.kind: c for c in counts(text).collectives}
    assert said["all-reduce"] == Collective("all-reduce", (0, 1, 2, 3), 1, 32 + 32)
    assert said["all-gather"] == Collective("all-gather", (0, 1, 2, 3), 1, 32) and said["all-gather"].sent == 96
    assert said["collective-permute"] == Collective("collective-permute", (1, 3), 1, 32)
    module = parse(text)
    assert [collective(module, module.entry, i) for i in module.entry.instructions].count(None) == 4


BESIDE = """HloModule m, num_partitions=4

%start (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %g = f32[32]{0} all-gather(%p), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %s = f32[32]{0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p: f32[8], q: f32[32], x: f32[16]) -> (f32[16], f32[8], f32[32], f32[32]) {
  %p = f32[8]{0} parameter(0)
  %q = f32[32]{0} parameter(1)
  %x = f32[16]{0} parameter(2)
  %n = f32[16]{0} negate(%x)
  %g = f32[32]{0} all-gather(%p), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %t = (f32[16]{0}, f32[8]{0}, f32[32]{0}, f32[32]{0}) tuple(%n, %p, %q, %g)
}

%done (p: f32[8], q: f32[32]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  %q = f32[32]{0} parameter(1)
  %g = f32[32]{0} all-gather(%p), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
  ROOT %d = f32[32]{0} custom-call(%p, %q, %g), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: f32[8], x: f32[16]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %x = f32[16]{0} parameter(1)
  %b = f32[32]{0} fusion(%a), kind=kCustom, calls=%start
  %m = (f32[16]{0}, f32[8]{0}, f32[32]{0}, f32[32]{0}) fusion(%a, %b, %x), kind=kOutput, calls=%meanwhile
  %q = f32[32]{0} get-tuple-element(%m), index=2
  ROOT %c = f32[32]{0} fusion(%a, %q), kind=kCustom, calls=%done
}
"""


def test_what_goes_on_beside_other_work_is_counted_once():
    """As libtpu writes it: in the fusion that starts it, in those that run meanwhile, in the one that waits."""
    found = counts(BESIDE)
    assert found.collectives == (Collective("all-gather", (0, 1, 2, 3), 1, 32),) and found.opaque == ()
    assert found.traffic == 4 * (8 + 32) + 4 * (16 + 16)  # one all-gather, one negation


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={1}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=(7,6,5,4,3,2,1,0) {'b'}", (7, 6)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", (0, 2)),
        ("replica_groups={}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("source_target_pairs={{0,1},{1,2},{7,0}}", (7, 0)),
    ],
)
def test_groups(attributes, expected):
    assert group(attributes, 8) == expected


def test_groups_that_are_not_known_are_not_guessed():
    with pytest.raises(ValueError, match="replica_groups: expected a list, an iota or a mesh, got new"):
        group("replica_groups=new[8]", 8)


def test_time_is_that_of_the_slower_link_where_a_host_is_left():
    near, far = (Collective("all-gather", group, 1, 450 * 10**9) for group in ((0, 1), (0, 8)))
    h200 = target("h200:2x8")
    assert not near.crosses(h200.domain) and far.crosses(h200.domain)
    assert times(h200, {}, 0, [near])["network"] == 1.0 and times(h200, {}, 0, [far])["network"] == 9.0
    assert roofline(h200, {"bf16": 989 * 10**12}, 0, [near, far]) == (10.0, "network")
    assert times(target("h200"), {}, 0) == {"compute": 0, "memory": 0} and times(target("cpu:8"), {}, 0) == {}
    assert set(KINDS) >= {near.kind}
