"""Names of several chips: what vendors build is read, what they do not is one line that says what was meant."""

import pytest

from effarch.bench import topology
from effarch.config import UserError


@pytest.mark.parametrize(
    ("name", "chips", "domain", "topology_name"),
    [
        ("v5e", 1, 1, "v5e:2x2"),
        ("v5e:1x1", 1, 1, "v5e:2x2"),
        ("v5e:16x16", 256, 256, "v5e:16x16"),
        ("V5P:4x4x8", 128, 128, "v5p:4x4x8"),
        ("v5p:2x2x1", 4, 4, "v5p:2x2x1"),
        ("v6e:8x8", 64, 64, "v6e:8x8"),
        ("h100:8", 8, 8, "1x1x8"),
        ("h200:4x8", 32, 8, "1x4x8"),
        ("cpu:8", 8, 8, ""),
    ],
)
def test_names(name, chips, domain, topology_name):
    target = topology.parse(name)
    assert (target.chips, target.domain, target.topology) == (chips, domain, topology_name)
    assert target.name.partition(":")[0] == name.lower().partition(":")[0]


def test_a_slice_has_the_chips_of_its_kind():
    one, many = topology.parse("v5p"), topology.parse("v5p:4x4x4")
    assert (one.memory, one.bandwidth, one.peaks, one.link) == (many.memory, many.bandwidth, many.peaks, many.link)
    h200 = topology.parse("h200")
    assert h200.memory == 150_754_820_096 and str(h200.memory) in h200.accelerator and h200.bandwidth == 4.8e12
    assert topology.parse("cpu:8").environment()["XLA_FLAGS"].endswith("--xla_force_host_platform_device_count=8")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v5ee:4x4", ["expected one of v5e, v5p, v6e, h100, h200, cpu", 'got "v5ee:4x4"', 'did you mean "v5e"?']),
        ("tpu", ["expected one of"]),
        ("v5e:", ['expected sizes after "v5e:"']),
        ("v5e:4*4", ['expected sizes after "v5e:", as in v5e:4x4', 'got "v5e:4*4"']),
        ("v5e:0x4", ["expected sizes"]),
        ("v5e:2x8", ["a slice of v5e (1x1, 2x2", 'did you mean "v5e:4x4"?']),
        ("v6e:3x3", ["a slice of v6e", 'got "v6e:3x3"']),
        ("v5p:8x4x4", ["three multiples of 4 in ascending order", 'did you mean "v5p:4x4x8"?']),
        ("v5p:4x4", ["a slice of v5p"]),
        ("v5p:28x28x28", ["a slice of v5p"]),
        ("h100:16", ["at most 8 GPUs in a host", "h100:4x8"]),
        ("h100:2x2x2", ["hosts x GPUs"]),
        ("cpu:2x4", ["a number of devices"]),
    ],
)
def test_names_of_nothing(name, parts):
    with pytest.raises(UserError) as raised:
        topology.parse(name)
    (line,) = raised.value.lines
    assert line.startswith("target: ") and all(part in line for part in parts), line
