"""Eight CPU devices, strict promotion, compiling made cheap.

No persistent compilation cache: sharing it saved nothing measurable, and writing to it killed a worker once.
"""

import gc
import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is what tests spend their time on: neither LLVM's optimizations nor, where one can do without (the flag came
# and went with versions of jaxlib), XLA's slow way to emit fusions. Three times faster, the same HLO.
# A program in one piece: a worker per core compiles side by side already. A fifth less work.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])  # what the user says comes last
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis  # noqa: E402
import jax  # noqa: E402 (reads the environment above)
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at groups
def pytest_collection_modifyitems(items):
    """Tests of one file stay in one worker, as what they compile and their fixtures do, where they name no group.

    Processes that train come first and the many small groups of the conformance suite last: no worker ends alone.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    items.sort(key=lambda i: i.nodeid.startswith("tests/conformance/") - i.nodeid.startswith("tests/train/"))


def pytest_collection_finish():
    """Tracing makes many small objects: what outlives the tests is not looked at again, and the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


_ran: list[tuple] = [()]


@pytest.fixture(autouse=True)
def programs_of_one_subject(request):
    """What was compiled for another file, or for another mixer of a file, is freed: gigabytes by the end of a run."""
    marker = request.node.get_closest_marker("xdist_group")
    running = (request.node.path, marker and marker.args)
    if running != _ran[0]:
        _ran[0] = running
        jax.clear_caches()
