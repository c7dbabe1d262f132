"""Mamba (2312.00752) in transformers' format."""

import math
from collections.abc import Mapping
from typing import Any

from effarch.hub.families import decoder, fla
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, concatenated, same
from effarch.mixers.mamba1 import Mamba1
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

# Of initialisation, of kernels, said twice, or the fields of the original code beside those of transformers.
_HOW = """
    rescale_prenorm_residual time_step_scale time_step_min time_step_max time_step_init_scheme time_step_floor
    use_mambapy use_associative_scan d_model d_inner n_layer ssm_cfg rms_norm fused_add_norm pad_vocab_size_multiple
""".split()


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    fields.ignore(*_HOW)
    dim = fields.positive("hidden_size")
    fields.only("hidden_act", "silu")
    fields.only("use_bias", False)
    fields.only("use_conv_bias", True)
    channels = fields.positive("expand", 2) * dim
    fields.only("intermediate_size", None, channels)
    auto = math.ceil(dim / 16)
    rank = fields.take("time_step_rank", (int, str), "auto")
    rank = auto if rank == "auto" else fields.positive("time_step_rank")
    mixer = Mamba1(
        channels=None if channels == 2 * dim else channels,
        state_size=fields.positive("state_size", 16),
        rank=None if rank == auto else rank,
        conv_width=fields.positive("conv_kernel", 4),
    )
    return LMConfig(
        vocab_size=fields.positive("vocab_size"),
        dim=dim,
        num_layers=fields.positive("num_hidden_layers"),
        pattern=(BlockConfig(mixer=mixer, channel=None),),
        norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
        residual_float32=fields.take("residual_in_fp32", bool, True),
        tie_embeddings=fields.take("tie_word_embeddings", bool, True),
    )


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = decoder.ends(config, names, table="backbone.embeddings", norm="backbone.norm_f")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.mixer", f"backbone.layers.{i}.mixer"
        norm = f"layers.{i}.mixer_norm.weight"
        found.append(same(norm, f"backbone.layers.{i}.norm.weight", names[norm]))
        for parts, name in ((("x", "z"), "in_proj"), (("dt.inner", "b", "c"), "x_proj")):
            kernels = [f"{ours}.{part}.kernel" for part in parts]
            found.append(concatenated(kernels, f"{theirs}.{name}.weight", [names[kernel] for kernel in kernels]))
        found += fla.linears(names, ours, theirs, {"dt.outer": "dt_proj", "o": "out_proj"})
        conv = f"{ours}.conv.weight"
        found.append(fla.taps(conv, [f"{theirs}.conv1d.weight"], names, [names[conv][1]]))
        others = {"conv.bias": "conv1d.bias", "dt.bias": "dt_proj.bias", "log_rate": "A_log", "skip": "D"}
        for mine, name in others.items():
            found.append(same(f"{ours}.{mine}", f"{theirs}.{name}", names[f"{ours}.{mine}"]))
    return found


def ignored(name: str) -> bool:
    """No tensor says nothing."""
    return False


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours."""
    mixer = config.pattern[0].mixer
    if not isinstance(mixer, Mamba1):
        return None
    channels, rank = mixer.sizes(config.dim)
    if channels % config.dim:  # they know it by its ratio to the model's width
        return None
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "state_size": mixer.state_size,
        "time_step_rank": rank,
        "conv_kernel": mixer.conv_width,
        "expand": channels // config.dim,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": config.residual_float32,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": config.param_dtype,
    }
