"""Layers of flash-linear-attention as whole layers, without Triton: its own code, over its own naive operations.

What it has in Triton only (short convolution, norms, fused operations) is put in place in torch. Needs the extra
`oracles` when called, not when imported.
"""

import sys
from types import ModuleType
from unittest import mock

from tests.golden.independent import heads_first, naive
from tests.golden.mixer import heads


def layer(name: str, path: str):
    """The class ``name`` of ``fla/layers/<path>.py``."""
    with mock.patch.dict(sys.modules, _stand_ins()):
        return getattr(naive(f"../layers/{path}"), name)


def _stand_ins() -> dict[str, ModuleType]:
    import torch
    from torch import nn
    from torch.nn import functional

    class ShortConvolution(nn.Module):
        """Depthwise, causal, then silu."""

        def __init__(self, hidden_size, kernel_size, bias, activation):
            super().__init__()
            assert activation == "silu" and not bias
            self.weight = nn.Parameter(torch.empty(hidden_size, 1, kernel_size))

        def forward(self, x, **_):
            taps = self.weight.shape[-1]
            x = functional.pad(x.transpose(1, 2), (taps - 1, 0))
            return functional.silu(functional.conv1d(x, self.weight, groups=len(self.weight)).transpose(1, 2)), None

    class RMSNorm(nn.RMSNorm):
        """Of the last axis; with a second input, times its swish."""

        def __init__(self, size, eps, **_):
            super().__init__(size, eps=eps)

        def forward(self, x, gate=None):
            return super().forward(x) * (1 if gate is None else functional.silu(gate))

    def unit(x):
        return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)

    def delta_rule(q, k, v, beta, **_):
        o, s = naive("delta_rule/naive").delta_rule_recurrence(*heads_first(unit(q), unit(k), v, beta))
        return o.transpose(1, 2), s

    def delta_product(q, k, v, g, beta, num_householder, **_):
        core = naive("gated_delta_product/naive").naive_recurrent_gated_delta_product
        scale = q.shape[-1] ** -0.5
        return core(unit(q), unit(k), v, g, beta, scale, num_householder=num_householder)

    return {
        "fla.layers.utils": _module(
            get_layer_cache=lambda *_: None,
            update_layer_cache=lambda *_, **__: None,
            unpad_hidden_states=lambda x, *_: (x, None, None),
            repad_hidden_states=lambda x, *_: x,
        ),
        "fla.modules": _module(FusedRMSNormGated=RMSNorm, RMSNorm=RMSNorm, ShortConvolution=ShortConvolution),
        "fla.modules.activations": _module(elu_p1=None),
        "fla.ops.delta_rule": _module(chunk_delta_rule=delta_rule, fused_recurrent_delta_rule=delta_rule),
        "fla.ops.gated_delta_product": _module(chunk_gated_delta_product=delta_product),
        "fla.ops.gated_delta_rule": _module(fused_recurrent_gated_delta_rule=None),
    }


def _module(**names) -> ModuleType:
    module = ModuleType("stand_in")
    vars(module).update(names)
    return module


def draw(rng, dim, *, heads, key_dim, value_dim, writes=1, gated=False):
    """Parameters of DeltaNet and DeltaProduct by their names, decay and output gate included if ``gated``."""
    q, k, v = heads * key_dim, writes * heads * key_dim, writes * heads * value_dim
    shapes = {
        "q_proj.weight": (q, dim),
        "k_proj.weight": (k, dim),
        "v_proj.weight": (v, dim),
        "b_proj.weight": (writes * heads, dim),
        "q_conv1d.weight": (q, 1, 4),
        "k_conv1d.weight": (k, 1, 4),
        "v_conv1d.weight": (v, 1, 4),
        "o_norm.weight": (value_dim,),
        "o_proj.weight": (dim, heads * value_dim),
    }
    if gated:
        shapes |= {"a_proj.weight": (heads, dim), "g_proj.weight": (heads * value_dim, dim), "dt_bias": (heads,)}
    found = {name: rng.normal(size=shape) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    return found | ({"A_log": rng.uniform(-3, 0, size=heads)} if gated else {})


def parameters(w, count, key_dim, value_dim, writes=()):
    """The same by our names; ``writes``: the axis of writes per token, outermost in theirs."""
    import jax.numpy as jnp

    found = {
        "q.kernel": heads(w["q_proj.weight"], count, key_dim),
        "k.kernel": heads(w["k_proj.weight"], *writes, count, key_dim),
        "v.kernel": heads(w["v_proj.weight"], *writes, count, value_dim),
        "b.kernel": heads(w["b_proj.weight"], *writes, count),
        "conv.weight": jnp.concatenate([w[f"{name}_conv1d.weight"][:, 0].T for name in "qkv"], axis=1),
        "norm.weight": w["o_norm.weight"],
        "o.kernel": w["o_proj.weight"].T.reshape(count, value_dim, -1),
    }
    if "A_log" in w:
        found |= {
            "gate.kernel": heads(w["g_proj.weight"], count, value_dim),
            "a.kernel": w["a_proj.weight"].T,
            "dt_bias": w["dt_bias"],
            "log_rate": w["A_log"],
        }
    return found
