"""One step of a run, compiled for a target and taken apart. In a process with the target's ``environment()``."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from effarch import axes
from effarch.bench.collectives import KINDS, Collective
from effarch.bench.compiled import Counts
from effarch.bench.estimate import build, does_not_fit, times
from effarch.bench.targets import Target
from effarch.config import UserError
from effarch.experiment.config import PretrainConfig
from effarch.ops.platform import tracing_for
from effarch.parallel.mesh import make_mesh
from effarch.parallel.rules import make_rules
from effarch.plan.models import model_of
from effarch.plan.outcome import Said, StepPlan
from effarch.plan.steps import Run, Step, decode, distilling, prefill, training
from effarch.typing import PyTree


def rules_for(config: Run, target: Target) -> axes.Rules:
    """The run's mesh of the target's devices. Raises ``UserError`` where its sizes do not multiply to them."""
    return make_rules(make_mesh(config.mesh, target.devices()))


def step_of(config: Run, what: str, stage: int, sizes: Mapping[str, int], rules: axes.Rules) -> Step:
    """A step of a run.

    Args:
      config: the run. what: train, prefill or decode. stage: number of the stage that trains, in a distillation.
      sizes: ``batch_size`` or ``seq_len`` in the place of those of the run or stage. rules: of the mesh.

    Raises:
      UserError: sizes that do not fit one another or the mesh.
    """
    if what != "train":
        make = {"prefill": prefill, "decode": decode}[what]
        chosen = {"batch_size": config.batch_size, "seq_len": config.seq_len, **sizes}
        return make(model_of(config), chosen["batch_size"], chosen["seq_len"], rules)
    if isinstance(config, PretrainConfig):
        return training(config.replace(**sizes), rules)
    return distilling(config, dataclasses.replace(config.plan()[stage], **sizes), rules)


def examine(name: str, step: Step, target: Target) -> StepPlan:
    """Compiles a step and says what came of it.

    Raises:
      UserError: the step cannot be traced with these sizes.
    """
    try:
        with tracing_for(target.traced):
            lowered = step.run.lower(*step.arguments)
    except ValueError as error:
        raise UserError(str(error).splitlines()[0]) from error
    built = build(target, lowered)
    held = {part: device_bytes(tree) for part, tree in step.parts.items()}
    memory, done = built.memory, built.counts or Counts(None, None, None)
    needed, fits = built.needed, built.fits
    if memory is not None:  # what a step is given and does not read takes its place all the same
        needed = memory.total + max(0, sum(held.values()) - memory.arguments)
        fits = needed <= target.memory
    flops, traffic, source = done.flops, done.traffic, "compiled"
    if built.counts is not None and done.total_flops is None:
        flops, source = {step.arithmetic: step.useful // target.chips}, "formula"
        traffic = sum(held.values()) + (0 if memory is None else memory.outputs) if traffic is None else traffic
    return StepPlan(
        name=name,
        batch_size=step.batch_size,
        seq_len=step.seq_len,
        tokens=step.tokens,
        fits=fits,
        needed=needed,
        reason="" if fits else does_not_fit(needed),
        held=held,
        temporaries=None if memory is None else memory.temporaries,
        activations=step.activations,
        outputs=None if memory is None else memory.outputs - memory.aliased,
        flops=done.total_flops,
        traffic=done.traffic,
        loops=done.loops,
        opaque=done.opaque,
        seconds=times(target, flops, traffic, done.collectives),
        collectives=by_kind(done.collectives),
        compile_seconds=built.seconds,
        source=source,
    )


def by_kind(collectives: Iterable[Collective]) -> tuple[Said, ...]:
    """Added up over groups of devices, in the order of ``KINDS``."""
    found = list(collectives)
    rows = {kind: [c for c in found if c.kind == kind] for kind in KINDS}
    return tuple(
        Said(kind, sum(c.count for c in same), sum(c.bytes for c in same), sum(c.sent for c in same))
        for kind, same in rows.items()
        if same
    )


def device_bytes(tree: PyTree) -> int:
    """Bytes that one device holds of arrays with shardings, abstract or not."""

    def one(x: Any) -> int:
        size = x.dtype.itemsize
        for n in x.sharding.shard_shape(x.shape):
            size *= n
        return size

    return sum(one(x) for x in jax.tree.leaves(tree))
