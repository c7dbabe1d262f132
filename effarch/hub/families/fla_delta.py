"""DeltaNet (2406.06484) and Gated DeltaNet (2412.06464) in flash-linear-attention's format."""

from collections.abc import Mapping
from typing import Any

from effarch.config import UserError
from effarch.hub.families import fla
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, same
from effarch.mixers.deltanet import DeltaNet
from effarch.mixers.gated_deltanet import GatedDeltaNet
from effarch.models.lm import LMConfig

ignored = fla.ignored


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    fla.begin(fields)
    gated = fields.only("model_type", "delta_net", "gated_deltanet") == "gated_deltanet"
    fields.only("use_short_conv", True)
    fields.only("use_gate", gated)
    shared = {
        "conv_width": fields.positive("conv_size", 4),
        "negative_eigenvalues": fields.take("allow_neg_eigval", bool, False),
        "norm_eps": fields.take("norm_eps", float, 1e-6),
    }
    return fla.language_model(fields, _gated(fields, shared) if gated else _plain(fields, shared))


def _plain(fields: Fields, shared: dict[str, Any]) -> DeltaNet:
    heads = fields.positive("num_heads", 16)
    fields.only("use_beta", True)
    fields.only("use_output_norm", True)
    fields.only("qk_norm", "l2")
    fields.only("qk_activation", "silu")
    fields.only("norm_first", False)  # of older files, as the next
    fields.only("share_conv_kernel", False)
    return DeltaNet(
        num_heads=heads,
        head_dim=fla.per_head(fields, "expand_k", 1.0, heads),
        value_head_dim=fla.per_head(fields, "expand_v", 1.0, heads),
        **shared,
    )


def _gated(fields: Fields, shared: dict[str, Any]) -> GatedDeltaNet:
    heads, width = fields.positive("num_heads", 6), fields.positive("head_dim", 256)
    values, ratio = fields.positive("num_v_heads", heads), fields.take("expand_v", float, 2.0)
    fields.only("output_gate_activation", "swish", "silu")
    if int(width * ratio) <= 0 or abs(width * ratio - int(width * ratio)) > 1e-5 * width * ratio:
        raise UserError(
            f"{fields.where}: expand_v: expected a whole number of channels per head, got {width * ratio:g}"
        )
    return GatedDeltaNet(
        num_heads=values,
        num_key_heads=None if values == heads else heads,
        head_dim=width,
        value_head_dim=int(width * ratio),
        **shared,
    )


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    return fla.model_rules(config, names, layer)


def layer(names: Mapping[str, Shape], ours: str, theirs: str) -> list[Rule]:
    """The tensors of one layer."""
    found = fla.linears(names, ours, theirs, {name: f"{name}_proj" for name in "qkvbo"})
    widths = [fla.flat(names[f"{ours}.{name}.kernel"][1:])[0] for name in "qkv"]
    found.append(fla.taps(f"{ours}.conv.weight", [f"{theirs}.{name}_conv1d.weight" for name in "qkv"], names, widths))
    found.append(same(f"{ours}.norm.weight", f"{theirs}.o_norm.weight", names[f"{ours}.norm.weight"]))
    if f"{ours}.a.kernel" in names:  # the decay and the gate of Gated DeltaNet
        found += fla.linears(names, ours, theirs, {"gate": "g_proj", "a": "a_proj"})
        for mine, name in (("log_rate", "A_log"), ("dt_bias", "dt_bias")):
            found.append(same(f"{ours}.{mine}", f"{theirs}.{name}", names[f"{ours}.{mine}"]))
    return found


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours."""
    if (found := fla.config_json(config, GatedDeltaNet, "GatedDeltaNetForCausalLM", "gated_deltanet")) is not None:
        mixer: GatedDeltaNet = fla.recurrent(config, GatedDeltaNet)
        values = mixer.num_heads if mixer.num_heads != mixer.key_heads else None
        found |= {"num_heads": mixer.key_heads, "num_v_heads": values, "head_dim": mixer.head_dim, "use_gate": True}
        return found | {"expand_v": mixer.value_head_dim / mixer.head_dim, **_shared(mixer)}
    if (found := fla.config_json(config, DeltaNet, "DeltaNetForCausalLM", "delta_net")) is not None:
        plain: DeltaNet = fla.recurrent(config, DeltaNet)
        keys, values = plain.num_heads * plain.head_dim, plain.num_heads * plain.value_head_dim
        found |= {"num_heads": plain.num_heads, "use_gate": False, **_shared(plain)}
        return found | {"expand_k": keys / config.dim, "expand_v": values / config.dim}
    return None


def _shared(mixer: DeltaNet) -> dict[str, Any]:
    return {"conv_size": mixer.conv_width, "allow_neg_eigval": mixer.negative_eigenvalues}
