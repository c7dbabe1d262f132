"""Peers: compared with ours in value and gradient before they are timed; what is wrong or missing is told."""

import dataclasses

import numpy as np
import pytest

from effarch.bench.peers import PEERS, measure, peers_of
from effarch.bench.peers.cases import OPS, draw, ours, reference
from effarch.bench.peers.measure import largest_difference
from effarch.ops.recurrence import oracle
from tests.tolerances import TOL, assert_close

SHAPE = {"batch": 1, "length": 40, "heads": 2, "head_dim": 16}
ON_CPU = [peer for peer in PEERS if not peer.gpu]


@pytest.mark.oracle
@pytest.mark.parametrize("peer", ON_CPU, ids=lambda peer: peer.name)
def test_a_peer_is_ours_and_is_timed(peer):
    if reason := peer.unavailable():
        pytest.skip(reason)
    found = measure(peer, mode="training", repeats=2, **SHAPE)
    assert found.reason == "" and found.error < 1e-5
    assert len(found.seconds) == 2 and min(found.seconds) > 0
    assert min(found.seconds) <= found.median <= max(found.seconds)


@pytest.mark.oracle
def test_a_peer_that_computes_something_else_is_told_and_not_timed():
    pytest.importorskip("torch")
    peer = peers_of("softmax")[0]
    honest = peer.load

    def wrong_gradient():
        run = honest()

        def backwards(x):
            o = run(x)
            return o.detach() * 2 - o  # the value is right

        return backwards

    found = measure(dataclasses.replace(peer, load=wrong_gradient), mode="prefill", repeats=2, **SHAPE)
    assert found.error == pytest.approx(2, rel=1e-3)
    assert found.seconds == () and found.median is None and "differs from ours by 2" in found.reason


def test_what_is_missing_is_told():
    peer = dataclasses.replace(ON_CPU[0], modules=("nowhere_to_be_found",))
    found = measure(peer, mode="training", **SHAPE)
    assert found.seconds == () and "nowhere_to_be_found is not installed" in found.reason
    assert "pip install 'effarch[peers]'" in found.reason
    peer = dataclasses.replace(ON_CPU[0], modules=(), dtypes=("bfloat16",))
    assert "takes bfloat16, not float32" in measure(peer, mode="training", **SHAPE).reason
    with pytest.raises(ValueError, match="mode: expected one of prefill, training"):
        measure(peer, mode="decode", **SHAPE)


def test_every_peer_stands_beside_an_op_of_ours():
    assert {peer.op for peer in PEERS} == set(OPS)
    assert len({peer.name for peer in PEERS}) == len(PEERS)


@pytest.mark.parametrize("op", [op for op in OPS if op != "softmax"])
def test_ours_is_the_recurrence_that_the_op_names(op):
    from effarch.bench.peers.cases import TRANSITIONS

    inputs = draw(op, 3, **SHAPE)
    o, _ = oracle(inputs["q"], inputs["k"], inputs["v"], transition=TRANSITIONS[op](inputs))
    weight = np.ones_like(inputs["v"])
    found = reference(op, inputs, weight, "float32")
    assert_close(found["o"], o, TOL.f32_forward)
    assert set(found) == {"o", *inputs} and all(np.abs(x).max() > 0 for x in found.values())
    with pytest.raises(ValueError, match="op: expected one of softmax"):
        ours("sofmax")


def test_the_largest_difference_counts_and_nan_is_none_that_is_allowed():
    ours = {"o": np.ones(4, np.float32), "q": np.full(4, 10, np.float32)}
    assert largest_difference({"o": np.ones(4), "q": np.full(4, 11.0), "x": np.zeros(1)}, ours) == pytest.approx(0.1)
    for broken in "oq":
        assert np.isnan(largest_difference({**ours, broken: np.full(4, np.nan)}, ours))
