"""What a plan says, as data."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Said:
    """All collectives of one kind.

    Attributes:
      kind: all-gather, reduce-scatter and so on. calls: per step.
      bytes: that a chip puts in, per step. sent: that it sends, per step, on rings.
    """

    kind: str
    calls: int
    bytes: int
    sent: int


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One compiled step. Everything is per chip and step, but tokens.

    Attributes:
      name: train, a stage, prefill, decode. batch_size, seq_len: its rows. tokens: that all chips read in it.
      fits: whether it does. needed: bytes; None where the compiler did not say. reason: why it does not fit, or "".
      held: bytes of what it is given, by name: parameters, optimizer, teacher, batch, state.
      temporaries: bytes that the compiler allots beside: activations, gradients, buffers; None if it does not compile.
      activations: bytes kept from the forward for the backward pass, from shapes; they are among the temporaries. None
        where nothing is trained.
      outputs: bytes of results that take no argument's place.
      flops: of matrix products. traffic: bytes between memory and cores. Loops count as often as they run; None where
        kernels or loops hide them. loops: iterations. opaque: such kernels.
      seconds: at the target's peaks, by what takes them: compute, memory, network; empty where unknown.
      collectives: by kind.
      compile_seconds: measured, here. source: "compiled", or "formula" where kernels or loops hide what is done; then
        ``seconds`` are those of the models' own FLOPs, and of what must be read and written once.
      largest: of what was sought, that fits; None: nothing was sought, or nothing fits. tried: sizes, and whether they
        fit.
    """

    name: str
    batch_size: int
    seq_len: int
    tokens: int
    fits: bool
    needed: int | None
    reason: str
    held: dict[str, int]
    temporaries: int | None
    activations: int | None
    outputs: int | None
    flops: int | None
    traffic: int | None
    loops: int | None
    opaque: tuple[str, ...]
    seconds: dict[str, float]
    collectives: tuple[Said, ...]
    compile_seconds: float
    source: str = "compiled"
    largest: int | None = None
    tried: tuple[tuple[int, bool], ...] = ()

    @classmethod
    def of(cls, told: dict[str, Any]) -> "StepPlan":
        """From ``dataclasses.asdict``, read back from JSON."""
        fields: dict[str, Any] = {**told, "opaque": tuple(told["opaque"])}
        fields["collectives"] = tuple(Said(**row) for row in told["collectives"])
        fields["tried"] = tuple((size, fits) for size, fits in told["tried"])
        return cls(**fields)

    @property
    def step_seconds(self) -> float | None:
        """The longest of ``seconds``, as if all went on at once: no step takes less. None where unknown."""
        return max(self.seconds.values(), default=None) if self.fits else None

    @property
    def bound(self) -> str:
        """What takes that long."""
        return max(self.seconds, key=lambda name: self.seconds[name], default="") if self.fits else ""

    @property
    def tokens_per_s(self) -> float | None:
        """At most, all chips together."""
        return None if not self.step_seconds else self.tokens / self.step_seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would take on a target.

    Attributes:
      target, chip: its name, and its vendor's. chips: how many. memory: bytes of each.
      mesh: devices by mesh axis. parameters: trained or read, of the model. what: train, prefill or decode.
      find: what was sought, or None. steps: each of them. assumptions: what the figures take for granted, in words.
    """

    target: str
    chip: str
    chips: int
    memory: int
    mesh: dict[str, int]
    parameters: int
    what: str
    find: str | None
    steps: tuple[StepPlan, ...]
    assumptions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether every step does."""
        return all(step.fits for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, what is derived included."""
        steps = [
            {
                **dataclasses.asdict(step),
                "step_seconds": step.step_seconds,
                "bound": step.bound,
                "tokens_per_s": step.tokens_per_s,
            }
            for step in self.steps
        ]
        return {**dataclasses.asdict(self), "fits": self.fits, "steps": steps}
