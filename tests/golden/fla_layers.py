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


def _torch_modules():
    """Norms of ``fla.modules`` in plain torch, and names that are imported but not called."""
    import torch
    from torch.nn import functional

    class RMSNorm(torch.nn.Module):
        def __init__(self, hidden_size, elementwise_affine=True, eps=1e-5, dtype=None):
            super().__init__()
            self.weight, self.bias, self.eps = torch.nn.Parameter(torch.ones(hidden_size)), None, eps

        def forward(self, x):
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)

    class FusedRMSNormGated(RMSNorm):
        def forward(self, x, gate):
            return super().forward(x) * functional.silu(gate)

    return {"RMSNorm": RMSNorm, "FusedRMSNormGated": FusedRMSNormGated, "ShortConvolution": None}


def _rms_norm_linear(x, norm_weight, norm_bias, weight, bias, eps=1e-6):
    from torch.nn import functional

    return functional.linear(functional.rms_norm(x, norm_weight.shape, norm_weight, eps), weight)


def gated_layer(name: str, op: str, naive):
    """A module of ``fla/layers`` that runs the naive op ``naive(**arguments) -> (o, state)`` in place of kernels.

    Its norms are torch's. The state it would have cached is left on the layer as ``state``.

    Args:
      name: of the file. op: of the kernels' package.
    """
    from torch.nn import functional

    def run(*, output_final_state=None, state_v_first=None, cu_seqlens=None, initial_state=None, **arguments):
        return naive(**arguments, output_final_state=True)

    def keep(module, past_key_values, *, recurrent_state, **rest):
        module.state = recurrent_state

    def unpad(x, cu_seqlens, attention_mask, length):
        return x, None, None

    kernels = [f"{form}_{op}" for form in ("chunk", "fused_chunk", "fused_recurrent")]
    activations = {"swish": functional.silu, "swiglu": lambda x, y: functional.silu(x) * y, "ACT2FN": {}}
    needs = {
        "fla__layers__utils": {
            "get_layer_cache": lambda module, cache: None,
            "update_layer_cache": keep,
            "unpad_hidden_states": unpad,
            "repad_hidden_states": lambda x, *rest: x,
        },
        "fla__modules": _torch_modules(),
        "fla__modules__activations": activations,
        "fla__modules__feature_map": vars(feature_maps()),
        "fla__modules__layernorm": {"rms_norm_linear": _rms_norm_linear},
        f"fla__ops__{op}": dict.fromkeys(kernels, run),
    }
    return load(f"layers/{name}", **needs)


def feature_maps():
    """``fla/modules/feature_map.py`` with torch's layer norm and without recomputation."""
    from torch.nn import functional

    def layer_norm(x, weight, bias):
        return functional.layer_norm(x, weight.shape, weight, bias)

    return load(
        "modules/feature_map",
        fla__modules__activations={**dict.fromkeys(("fast_gelu_impl", "sigmoid", "sqrelu")), "swish": functional.silu},
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
