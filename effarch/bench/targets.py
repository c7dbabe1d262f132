"""Accelerators that are not here: their compilers run without them, and say exactly how much memory a program needs.

    pip install 'effarch[tpu]'          # libtpu compiles for v5e, v5p and v6e
    pip install 'effarch[cuda12]'       # or cuda13: XLA's compiler for the H100 and the H200

Memory is what the compiler allots. Time is no measurement: it is the roofline of what the compiled program does,
counted with its loops, at the peak that the vendor states, and always labelled as estimated.

Peaks per chip, dense: v5e, v5p and v6e after https://cloud.google.com/tpu/docs (v5e, v5p, v6e); a product of float32 at
the precision of float32 takes six passes of bfloat16 there, at the default precision one. H100 SXM and H200 SXM after
NVIDIA's data sheets: bfloat16 989 TFLOP/s, TF32 494, float32 without tensor cores 67; 3.35 and 4.8 TB/s.

Links, what one chip sends, all of its links together: 1600, 4800 and 3200 Gbit/s (v5e, v5p, v6e, the same pages: half
of the bandwidth of both directions). NVLink 450 GB/s (900 both ways) within a host, and between hosts InfiniBand of 400
Gbit/s per GPU, as in NVIDIA's DGX H100 and H200.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from effarch.config import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Target:
    """An accelerator to compile for, or several of them that are joined.

    Attributes:
      name, chip: as one types it; as its vendor calls it. platform: "tpu", "cuda" or "cpu".
      topology: as its compiler reads it, the smallest that it describes or the one asked for.
      accelerator: type for libtpu, description for XLA's compiler for GPUs, "" elsewhere.
      memory: bytes of one device. bandwidth: bytes/s. peaks: FLOP/s by ``products.KINDS``, empty if nobody states them.
      link: bytes/s that a device sends to others of its slice or host. network: to other hosts, where ``link`` ends.
      chips: devices of the topology that are used. domain: as many of them, one after another, ``link`` joins.
    """

    name: str
    chip: str
    platform: str
    topology: str
    accelerator: str
    memory: int
    bandwidth: float
    peaks: Mapping[str, float]
    link: float
    network: float = 0.0
    chips: int = 1
    domain: int = 1

    @property
    def traced(self) -> str:
        """The platform as ops know it."""
        return "gpu" if self.platform == "cuda" else self.platform

    def environment(self) -> dict[str, str]:
        """What the process that compiles must have in its environment before it imports jax."""
        if self.platform == "cpu":
            flags = os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={self.chips}"
            return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(filter(None, flags))}  # the last one counts
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
        modules = {"tpu": ("libtpu",), "cuda": ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")}.get(self.platform)
        if modules is None or any(_found(module) for module in modules):
            return None
        extra = "tpu" if self.platform == "tpu" else "cuda12"
        return f"target: \"{self.name}\" needs a compiler that is not installed; pip install 'effarch[{extra}]'"

    def devices(self) -> list[Any]:
        """Descriptions of its devices to compile for. Raises ``UserError`` where the compiler is missing."""
        import jax
        from jax.experimental import topologies

        if reason := self.missing():
            raise UserError(reason)
        if self.platform == "cpu":
            return jax.devices("cpu")[: self.chips]
        if self.platform == "tpu":
            described = topologies.get_topology_desc(topology_name=self.topology, platform="tpu")
        else:
            described = topologies.get_topology_desc(
                topology_name=self.name.partition(":")[0],
                platform="cuda",
                topology=self.topology,
                target_config=self.accelerator,
            )
        return list(described.devices)[: self.chips]

    def device(self) -> Any:
        """The first of its devices. Raises ``UserError`` where the compiler is missing."""
        return self.devices()[0]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _tpu(
    name: str, topology: str, accelerator: str, gib: int, bandwidth: float, peak: float, gigabits: float
) -> Target:
    peaks = MappingProxyType({"bf16": peak, "f32": peak, "f32_highest": peak / 6})
    link = gigabits * 1e9 / 8
    return Target(name, f"TPU {name}", "tpu", topology, accelerator, gib * 2**30, bandwidth, peaks, link)


_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: 1.98
  device_memory_size: {memory} cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{description}"
"""


def _hopper(name: str, chip: str, memory: int, bandwidth: int, description: str) -> Target:
    """H100 and H200 differ in their memory alone."""
    told = _HOPPER.format(bandwidth=bandwidth, memory=memory, cache=52_428_800, description=description)
    peaks = MappingProxyType({"bf16": 989e12, "f32": 494e12, "f32_highest": 67e12})
    return Target(name, chip, "cuda", "1x1x1", told, memory, float(bandwidth), peaks, 450e9, 50e9)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            _tpu("v5e", "v5e:2x2", "v5litepod-4", 16, 819e9, 197e12, 1600),
            _tpu("v5p", "v5p:2x2x1", "v5p-8", 95, 2765e9, 459e12, 4800),
            _tpu("v6e", "v6e:2x2", "v6e-4", 32, 1640e9, 918e12, 3200),
            _hopper("h100", "NVIDIA H100 SXM 80 GB", 84_978_434_048, 3_352_320_000_000, "NVIDIA H100 80GB HBM3"),
            _hopper("h200", "NVIDIA H200 SXM 141 GB", 150_754_820_096, 4_800_000_000_000, "NVIDIA H200"),
        )
    }
)


def get(name: str) -> Target:
    """The target called ``name``, one device. Raises ``UserError`` with those there are."""
    if name not in TARGETS:
        raise UserError(f'targets: expected any of {", ".join(TARGETS)}, got "{name}"{did_you_mean(name, TARGETS)}')
    return TARGETS[name]
