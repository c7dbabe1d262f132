"""What several processes agree on, with one; real ones are in tests/train/test_processes.py."""

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from effarch.config import UserError, load
from effarch.parallel import processes
from effarch.parallel.processes import ProcessesConfig


@pytest.mark.parametrize(
    "given, message",
    [
        (["coordinator=host:1234", "index=0"], "count: expected a number beside coordinator=host:1234, got null"),
        (["coordinator=host:1234", "count=2"], "index: expected a number beside coordinator=host:1234, got null"),
        (["coordinator=auto", "count=2"], "count: expected coordinator=HOST:PORT beside it, got auto"),
        (["index=1"], "index: expected coordinator=HOST:PORT beside it, got null"),
        (["coordinator=host", "count=2", "index=0"], "coordinator: expected auto or HOST:PORT, got 'host'"),
        (["coordinator=host:1", "count=2", "index=2"], "index: expected one below count = 2, got 2"),
    ],
)
def test_what_does_not_fit_together_is_said(given, message):
    with pytest.raises(UserError, match=message):
        load(ProcessesConfig, None, given)


def test_alone_everything_is_the_plain_thing():
    with processes.started(ProcessesConfig()):
        assert processes.is_first()
        assert processes.on_first(lambda: {"a": 1}) == {"a": 1}
        assert processes.first_before_others(lambda: 3) == 3
        assert processes.any_of(True) and not processes.any_of(False)
        agreement = processes.Agreement()
        assert agreement(True) and not agreement(False)
        assert processes.everywhere() == SingleDeviceSharding(jax.devices()[0])
        tree = {"x": jax.numpy.arange(3)}
        assert processes.of_this_process(tree) is tree  # which has eight devices
        np.testing.assert_array_equal(processes.on_host(tree)["x"], [0, 1, 2])
        with pytest.raises(ValueError, match="boom"):
            processes.on_first(lambda: (_ for _ in ()).throw(ValueError("boom")))


@pytest.mark.parametrize(
    "error, lost",
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer\nmore"), True),
        (RuntimeError("NCCL operation failed"), True),
        (ValueError("seed: expected 0 <= seed"), False),
        (KeyError("gloo"), False),
    ],
)
def test_a_lost_connection_is_told_from_a_mistake(error, lost):
    assert bool(processes._lost(error)) is lost
    if lost:
        assert "\n" not in processes._lost(error)
