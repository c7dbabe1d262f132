"""The torch parts of flash-linear-attention's layers: the package wants Triton, its references do not."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock


def load(path: str, **needs: dict):
    """A module by its path below ``fla``, its imports from the package replaced by ``needs``: module to its names.

    Dots of module names are written as ``__``.
    """
    stand_ins = {}
    for name, contents in needs.items():
        stand_ins[name.replace("__", ".")] = module = ModuleType(name)
        module.__dict__.update(contents)
    root = Path(importlib.util.find_spec("fla").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(f"torch_{path.replace('/', '_')}", root / f"{path}.py")
    loaded = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, stand_ins):
        spec.loader.exec_module(loaded)
    return loaded


def feature_maps():
    """``fla/modules/feature_map.py`` with torch's layer norm and without recomputation."""
    from torch.nn import functional

    def layer_norm(x, weight, bias):
        return functional.layer_norm(x, weight.shape, weight, bias)

    return load(
        "modules/feature_map",
        fla__modules__activations=dict.fromkeys(("fast_gelu_impl", "sigmoid", "sqrelu", "swish")),
        fla__modules__layernorm={"layer_norm": layer_norm},
        fla__utils={"checkpoint": lambda function: function},
    )


def layer(path: str):
    """A module of ``fla/layers`` whose kernels are absent: for its ``forward_reference``."""
    absent = ("parallel_based", "parallel_rebased", "chunk_linear_attn", "fused_chunk_linear_attn")
    return load(
        f"layers/{path}",
        fla__modules__feature_map=vars(feature_maps()),
        fla__ops__based=dict.fromkeys(absent),
        fla__ops__rebased=dict.fromkeys(absent),
        fla__ops__linear_attn=dict.fromkeys(absent),
    )
