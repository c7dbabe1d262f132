"""Eight CPU devices, strict promotion, and one compilation cache for all workers of a run."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is what tests spend their time on: neither LLVM's optimizations nor, where one can do without (the flag came
# and went with versions of jaxlib), XLA's slow way to emit fusions. Three times faster, the same HLO.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])  # what the user says comes last
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis  # noqa: E402
import jax  # noqa: E402 (reads the environment above)

_SHARED = "EFFARCH_TESTS_COMPILATION_CACHE"  # from the first process to the workers of pytest-xdist
if _SHARED not in os.environ:
    os.environ[_SHARED] = tempfile.mkdtemp(prefix="effarch-tests-")
    atexit.register(shutil.rmtree, os.environ[_SHARED], ignore_errors=True)

# Set here and not in the environment: a process that a test starts, and perhaps kills, must not share the cache.
jax.config.update("jax_compilation_cache_dir", os.environ[_SHARED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # every entry makes the next one slower to add
jax.config.update("jax_compilation_cache_max_size", 4 << 30)  # a limit makes jax lock the folder

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
