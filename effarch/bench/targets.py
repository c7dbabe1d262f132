"""Accelerators that are not here: their compilers run without them, and say exactly how much memory a program needs.

    pip install 'effarch[tpu]'          # libtpu compiles for v5e, v5p and v6e
    pip install 'effarch[cuda12]'       # or cuda13: XLA's compiler for the H100

Memory is what the compiler allots. Time is no measurement: it is the roofline of what the compiled program does,
counted with its loops, at the peak that the vendor states, and always labelled as estimated.

Peaks per chip, dense: v5e, v5p and v6e after https://cloud.google.com/tpu/docs (v5e, v5p, v6e); a product of float32 at
the precision of float32 takes six passes of bfloat16 there, at the default precision one. H100 SXM after NVIDIA's data
sheet: bfloat16 989 TFLOP/s, TF32 494, float32 without tensor cores 67, 3.35 TB/s.
"""

import dataclasses
import importlib.util
import re
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from effarch.bench.compiled import Counts, Memory, counts, memory
from effarch.config import UserError, did_you_mean
from effarch.ops.platform import tracing_for


@dataclasses.dataclass(frozen=True)
class Target:
    """An accelerator to compile for.

    Attributes:
      name, chip: as one types it; as its vendor calls it. platform: "tpu" or "cuda".
      topology: the smallest that its compiler describes. accelerator: type for libtpu, "" elsewhere.
      memory: bytes of one device. bandwidth: bytes/s. peaks: FLOP/s by ``products.KINDS``.
    """

    name: str
    chip: str
    platform: str
    topology: str
    accelerator: str
    memory: int
    bandwidth: float
    peaks: Mapping[str, float]

    @property
    def traced(self) -> str:
        """The platform as ops know it."""
        return "gpu" if self.platform == "cuda" else self.platform

    def environment(self) -> dict[str, str]:
        """What the process that compiles must have in its environment before it imports jax."""
        if self.platform == "cuda":
            return {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": self.accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "TPU_LOG_DIR": "disabled",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs on it, so processes need not take turns
        }

    def missing(self) -> str | None:
        """The extra to install, in words; None where its compiler is here."""
        modules = ("libtpu",) if self.platform == "tpu" else ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
        if any(_found(module) for module in modules):
            return None
        extra = "tpu" if self.platform == "tpu" else "cuda12"
        return f"targets: \"{self.name}\" needs a compiler that is not installed; pip install 'effarch[{extra}]'"

    def device(self) -> Any:
        """A device description to compile for. Raises ``UserError`` where the compiler is missing."""
        from jax.experimental import topologies

        if reason := self.missing():
            raise UserError(reason)
        if self.platform == "tpu":
            return topologies.get_topology_desc(topology_name=self.topology, platform="tpu").devices[0]
        described = topologies.get_topology_desc(
            topology_name=self.name, platform="cuda", topology=self.topology, target_config=H100
        )
        return described.devices[0]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _tpu(name: str, topology: str, accelerator: str, gib: int, bandwidth: float, peak: float) -> Target:
    peaks = MappingProxyType({"bf16": peak, "f32": peak, "f32_highest": peak / 6})
    return Target(name, f"TPU {name}", "tpu", topology, accelerator, gib * 2**30, bandwidth, peaks)


H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            _tpu("v5e", "v5e:2x2", "v5litepod-4", 16, 819e9, 197e12),
            _tpu("v5p", "v5p:2x2x1", "v5p-8", 95, 2765e9, 459e12),
            _tpu("v6e", "v6e:2x2", "v6e-4", 32, 1640e9, 918e12),
            Target(
                "h100",
                "NVIDIA H100 SXM 80 GB",
                "cuda",
                "1x1x1",
                "",
                84_978_434_048,
                3.35e12,
                MappingProxyType({"bf16": 989e12, "f32": 494e12, "f32_highest": 67e12}),
            ),
        )
    }
)


def get(name: str) -> Target:
    """The target called ``name``. Raises ``UserError`` with those there are."""
    if name not in TARGETS:
        raise UserError(f'targets: expected any of {", ".join(TARGETS)}, got "{name}"{did_you_mean(name, TARGETS)}')
    return TARGETS[name]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What compiling a program for a target told.

    Attributes:
      target: its name. memory: bytes as the compiler allots them, None where it refused or does not say.
      counts: what the compiled program does. flops: of all matrix products. seconds: estimated, the roofline.
      bound: "compute" or "memory", whichever takes longer.
      source: "compiled" where the program was counted, "formula" where kernels or loops of a length that is decided at
        run time hide what it does; then its useful FLOPs and, where loops do, its least traffic stand in.
      compile_seconds: measured, here. reason: why it would not run, "" if it would.
    """

    target: str
    memory: Memory | None
    counts: Counts | None
    flops: int | None
    seconds: float | None
    bound: str
    source: str
    compile_seconds: float
    reason: str = ""


class Compilable(Protocol):
    """What is compiled: see ``effarch.bench.program.Program``."""

    run: Callable[..., Any]
    flops: int | None
    bytes: int | None

    def arguments(self, key: Any) -> tuple[Any, ...]:
        """Inputs, drawn with ``key``; traced for their shapes only."""
        ...


def compile_for(target: Target, program: Compilable, *, donated: tuple[int, ...] = ()) -> Estimate:
    """Compiles one program for one device of the target, in a process with its ``environment()``.

    Args:
      target: from ``get``. program: its ``run`` and the shapes of its ``arguments``.
      donated: numbers of the arguments whose memory results may take.

    Raises:
      UserError: the compiler is not installed.
    """
    import jax

    place = jax.sharding.SingleDeviceSharding(target.device())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(program.arguments, jax.random.key(0)),
    )

    def run(*given: Any) -> Any:
        with tracing_for(target.traced):
            return program.run(*given)

    lowered = jax.jit(run, donate_argnums=donated).lower(*arguments)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - start
        return Estimate(target.name, None, None, program.flops, None, "", "", seconds, does_not_fit(str(error)))
    seconds = time.perf_counter() - start
    held, done = memory(compiled), counts(compiled)
    flops, traffic, source = done.flops, done.traffic, "compiled"
    if done.total_flops is None:
        flops = None if program.flops is None else {_arithmetic(arguments): program.flops}
        traffic, source = (program.bytes if traffic is None else traffic), "formula"
    fits = held is None or held.total <= target.memory
    reason = "" if fits or held is None else f"does not fit ({held.total} bytes)"
    took, bound = roofline(target, flops, traffic) if fits else (None, "")
    total = None if flops is None else sum(flops.values())
    return Estimate(target.name, held, done, total, took, bound, source, seconds, reason)


def _arithmetic(arguments: Any) -> str:
    """What products of these ask for where they cannot be seen."""
    import jax

    return "bf16" if any(x.dtype.itemsize == 2 for x in jax.tree.leaves(arguments)) else "f32_highest"


def roofline(target: Target, flops: Mapping[str, int] | None, traffic: int | None) -> tuple[float | None, str]:
    """Seconds at the target's peaks, and what bounds them; None where something was not counted."""
    if flops is None or traffic is None:
        return None, ""
    compute = sum(count / target.peaks[kind] for kind, count in flops.items())
    moving = traffic / target.bandwidth
    return max(compute, moving), "compute" if compute >= moving else "memory"


_SIZE = re.compile(r"\b(\d+(?:\.\d+)?)([KMGTP]?)(?:i?B)?\b(?=[\s),.;]|$)")


def does_not_fit(message: str) -> str:
    """``does not fit (N bytes)`` from a compiler's RESOURCE_EXHAUSTED: the largest size that it speaks of first."""
    first = message.split("Largest program allocations")[0].split("\n\n")[0]
    factors = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
    sizes = [float(number) * factors[unit] for number, unit in _SIZE.findall(first) if unit]
    return f"does not fit ({int(max(sizes))} bytes)" if sizes else "does not fit"
