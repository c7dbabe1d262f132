"""Targets of several chips by name: ``v5e:4x4``, ``v5p:4x4x8``, ``h100:8``, ``h200:4x8`` (hosts x GPUs), ``cpu:8``."""

import dataclasses
import itertools
import math
import os
import re
from types import MappingProxyType

from effarch.bench.targets import TARGETS, Target
from effarch.config import UserError, did_you_mean

_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SIDES = [side for side in itertools.combinations_with_replacement(range(4, 29, 4), 3) if math.prod(side) <= 8960]
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", *("x".join(map(str, sides)) for sides in _SIDES))
#: What Google builds: https://cloud.google.com/tpu/docs, v5e, v5p and v6e.
SLICES = {"v5e": _PLANES, "v5p": _CUBES, "v6e": _PLANES}
RULES = {"v5p": "2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4 in ascending order"}
KINDS = (*TARGETS, "cpu")
_SHAPE = re.compile(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", re.ASCII)


def parse(name: str) -> Target:
    """The target that ``name`` describes: a kind alone is one device.

    Raises:
      UserError: an unknown kind, or a topology that its vendor does not build.
    """
    kind, colon, shape = name.strip().lower().partition(":")
    if kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise UserError(f'target: expected one of {kinds}, as in v5e:4x4, got "{name}"{did_you_mean(kind, KINDS)}')
    if not colon:
        return _cpu(1) if kind == "cpu" else TARGETS[kind]
    if not _SHAPE.fullmatch(shape):
        raise UserError(f'target: expected sizes after "{kind}:", as in {_example(kind)}, got "{name}"')
    sizes = tuple(int(size) for size in shape.split("x"))
    if kind == "cpu":
        if len(sizes) > 1:
            raise UserError(f'target: expected a number of devices after "cpu:", got "{name}"')
        return _cpu(sizes[0])
    base = TARGETS[kind]
    return _gpu(base, sizes) if base.platform == "cuda" else _slice(base, kind, shape)


def _example(kind: str) -> str:
    return {"v5p": "v5p:4x4x8", "v5e": "v5e:4x4", "v6e": "v6e:8x8", "cpu": "cpu:8"}.get(kind, f"{kind}:8 or {kind}:4x8")


def _slice(base: Target, kind: str, shape: str) -> Target:
    known, chips = SLICES[kind], _chips(shape)
    if shape not in known:
        same = next((other for other in known if _chips(other) == chips), None)
        meant = f'; did you mean "{kind}:{same}"?' if same else did_you_mean(shape, known)
        listed = RULES.get(kind, ", ".join(known))
        raise UserError(f'target: expected a slice of {kind} ({listed}), got "{kind}:{shape}"{meant}')
    topology = base.topology if chips == 1 else f"{kind}:{shape}"
    return dataclasses.replace(base, name=f"{kind}:{shape}", topology=topology, chips=chips, domain=chips)


def _chips(shape: str) -> int:
    return math.prod(int(size) for size in shape.split("x"))


def _gpu(base: Target, sizes: tuple[int, ...]) -> Target:
    name = f"{base.name}:{'x'.join(map(str, sizes))}"
    if len(sizes) > 2:
        raise UserError(f'target: expected GPUs, or hosts x GPUs, as in {_example(base.name)}, got "{name}"')
    hosts, each = (1, sizes[0]) if len(sizes) == 1 else sizes
    if each > 8:
        raise UserError(f'target: expected at most 8 GPUs in a host (hosts x GPUs, {base.name}:4x8), got "{name}"')
    return dataclasses.replace(base, name=name, topology=f"1x{hosts}x{each}", chips=hosts * each, domain=each)


def _cpu(count: int) -> Target:
    """Simulated devices of this machine, which share its memory; what they would take is in no data sheet."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // count
    name = "cpu" if count == 1 else f"cpu:{count}"
    return Target(
        name, "this machine", "cpu", "", "", memory, math.inf, MappingProxyType({}), math.inf, 0.0, count, count
    )
