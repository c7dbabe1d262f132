"""GLA (2312.06635) and RetNet (2307.08621) in flash-linear-attention's format."""

from collections.abc import Mapping
from typing import Any

from effarch.hub.families import fla
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, same
from effarch.mixers.base import MixerConfig
from effarch.mixers.gla import GLA
from effarch.mixers.retnet import RetNet
from effarch.models.lm import LMConfig

ignored = fla.ignored
_KINDS: dict[str, tuple[type[MixerConfig], str]] = {
    "gla": (GLA, "GLAForCausalLM"),
    "retnet": (RetNet, "RetNetForCausalLM"),
}


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    fla.begin(fields)
    kind = fields.only("model_type", "gla", "retnet")
    retains = kind == "retnet"
    heads = fields.positive("num_heads", 8 if retains else 4)
    fields.only("num_kv_heads", None, heads)
    fields.only("feature_map", None)
    fields.only("use_short_conv", False)
    fields.only("use_output_gate", True)
    fields.only("elementwise_affine", True)
    fields.only("fuse_norm", True)  # else a tensor has another name
    fields.ignore("conv_size")
    sizes = {
        "num_heads": heads,
        "head_dim": fla.per_head(fields, "expand_k", 1.0 if retains else 0.5, heads),
        "value_head_dim": fla.per_head(fields, "expand_v", 2.0 if retains else 1.0, heads),
        "norm_eps": fields.take("norm_eps", float, 1e-6),
    }
    if retains:
        return fla.language_model(fields, RetNet(**sizes), hidden_ratio=2.0)
    fields.only("clamp_min", None)
    fields.only("use_gk", True)
    fields.only("use_gv", False)
    return fla.language_model(fields, GLA(**sizes, rope_theta=None, gate_rank=16, temperature=16.0))


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    return fla.model_rules(config, names, layer)


def layer(names: Mapping[str, Shape], ours: str, theirs: str) -> list[Rule]:
    """The tensors of one layer."""
    found = fla.linears(names, f"{ours}.qkv", theirs, {name: f"{name}_proj" for name in "qkvo"})
    found += fla.linears(names, ours, theirs, {"gate": "g_proj"})
    found.append(same(f"{ours}.norm.weight", f"{theirs}.g_norm_swish_gate.weight", names[f"{ours}.norm.weight"]))
    if f"{ours}.a.bias" in names:  # GLA's decay
        found += fla.linears(names, f"{ours}.a", f"{theirs}.gk_proj", {"inner": "0", "outer": "1"})
        bias = names[f"{ours}.a.bias"]
        found.append(same(f"{ours}.a.bias", f"{theirs}.gk_proj.1.bias", bias, as_shape=fla.flat(bias)))
    return found


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours."""
    for model_type, (kind, name) in _KINDS.items():
        if (found := fla.config_json(config, kind, name, model_type)) is not None:
            mixer = fla.recurrent(config, kind)
            keys, values = mixer.num_heads * mixer.head_dim, mixer.num_heads * mixer.value_head_dim
            ratios = {"expand_k": keys / config.dim, "expand_v": values / config.dim}
            return found | {"num_heads": mixer.num_heads, "num_kv_heads": None, **ratios}
    return None
