"""A plan: which steps a run has, each compiled for the target in a process of its own."""

import dataclasses
import math
from collections.abc import Callable

from effarch.bench.topology import parse
from effarch.config import UserError, did_you_mean
from effarch.eval.table import duration, size
from effarch.experiment.abstractly import abstractly
from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig
from effarch.models.lm import make_lm, parameter_count
from effarch.parallel.mesh import mesh_sizes
from effarch.parallel.sharding import check_rows
from effarch.plan.assumptions import assumptions
from effarch.plan.config import Find, What
from effarch.plan.find import largest
from effarch.plan.models import model_of
from effarch.plan.outcome import Plan, StepPlan
from effarch.plan.worker import Worker

TOKENS = 128  # a length that is sought is a multiple of it, where the run's is
Run = PretrainConfig | DistillConfig
Compile = Callable[[dict[str, int]], StepPlan]


@dataclasses.dataclass(frozen=True)
class Place:
    """A step of a run: its number among the stages, its name, its sizes."""

    number: int
    name: str
    batch_size: int
    seq_len: int


def plan(
    config: Run,
    target: str,
    *,
    what: What = "train",
    stage: str | None = None,
    find: Find | None = None,
    memory: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Plan:
    """What a run would take on a target: its real steps, compiled by the target's compiler, without the target.

    Args:
      config: of ``train.pretrain`` or ``train.distill``; its mesh is one of the target's devices.
      target: v5e:4x4, v5p:4x4x8, v6e:8x8, h100:8, h200:4x8, cpu:8; a kind alone is one device.
      what: the training step; or prefill of, or decoding one token after, ``batch_size`` rows of ``seq_len`` tokens.
      stage: of a distillation, by name or number; None: each of them.
      find: which size to raise as far as it fits, in the place of the config's.
      memory: GiB that a device has; None: as its vendor says.
      tell: is told a line for everything that was compiled.

    Raises:
      UserError: a mistake in the arguments, or a compiler that is not installed.
    """
    machine = parse(target)
    if memory is not None:
        machine = dataclasses.replace(machine, memory=round(memory * 2**30))
    places = places_of(config, what, stage)
    mesh = mesh_sizes(config.mesh, machine.chips)
    for place in places if what == "train" and find != "batch_size" else ():
        check_rows(place.batch_size, mesh["data"] * mesh["fsdp"])
    model = model_of(config)
    count = parameter_count(abstractly(lambda: make_lm(model)))
    if reason := machine.missing():
        raise UserError(reason)
    request = {
        "schema": type(config).__name__,
        "config": config.model_dump(mode="json"),
        "target": machine.name,
        "memory": machine.memory,
        "what": what,
    }
    steps = []
    with Worker(machine) as worker:
        for place in places:

            def compiled(sizes: dict[str, int], place: Place = place) -> StepPlan:
                asked = {"stage": place.number, "name": place.name, "sizes": sizes}
                found = StepPlan.of(worker.ask({**request, **asked}))
                tell(line(found))
                return found

            if find is None:
                steps.append(compiled({}))
            else:
                steps.append(sought(compiled, find, place, unit_of(config, find, place, mesh)))
    return Plan(
        target=machine.name,
        chip=machine.chip,
        chips=machine.chips,
        memory=machine.memory,
        mesh=mesh,
        parameters=count,
        what=what,
        find=find,
        steps=tuple(steps),
        assumptions=assumptions(machine, what),
    )


def places_of(config: Run, what: What, stage: str | None) -> tuple[Place, ...]:
    """The steps to plan.

    Raises:
      UserError: there is no such stage.
    """
    if what != "train" or isinstance(config, PretrainConfig):
        if stage is not None:
            owner = "the training of a distillation" if what != "train" else "a distillation"
            raise UserError(f'stage: expected null but for {owner}, got "{stage}"')
        return (Place(0, what, config.batch_size, config.seq_len),)
    places = tuple(Place(i, p.name, p.batch_size, p.seq_len) for i, p in enumerate(config.plan()))
    if stage is None:
        return places
    found = tuple(place for place in places if stage in (place.name, str(place.number)))
    if not found:
        names = [place.name for place in places]
        raise UserError(
            f'stage: expected one of {", ".join(names)}, or a number below {len(names)}, got "{stage}"'
            f"{did_you_mean(stage, names)}"
        )
    return found


def unit_of(config: Run, find: Find, place: Place, mesh: dict[str, int]) -> int:
    """What the sizes that are sought are multiples of: rows divide over devices and parts, tokens over devices."""
    if find == "batch_size":
        return mesh["data"] * mesh["fsdp"] * config.grad_accum
    ways = mesh["context"]
    return ways if place.seq_len % TOKENS else math.lcm(ways, TOKENS)


def sought(compiled: Compile, find: Find, place: Place, unit: int) -> StepPlan:
    """The step of the largest size that fits; where none does, that of the smallest."""
    found: dict[int, StepPlan] = {}

    def fits(value: int) -> bool:
        found[value] = compiled({find: value})
        return found[value].fits

    best = largest(fits, start=getattr(place, find), unit=unit)
    return dataclasses.replace(found[best.largest or min(found)], largest=best.largest, tried=best.tried)


def line(step: StepPlan) -> str:
    """A compilation in a line."""
    need = "" if step.needed is None else f", {size(step.needed)} per chip"
    sizes = f"{step.name}, {step.batch_size} rows of {step.seq_len} tokens"
    return f"{sizes}: {'fits' if step.fits else 'does not fit'}{need} (compiled in {duration(step.compile_seconds)})"
