"""Mamba-2 (2405.21060) in transformers' format."""

import math
from collections.abc import Mapping
from typing import Any

from effarch.config import UserError
from effarch.hub.families import decoder, fla
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, concatenated, same
from effarch.mixers.mamba2 import Mamba2
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

# Of initialisation, of kernels, said twice, or read by no code of theirs.
_HOW = """
    chunk_size rescale_prenorm_residual time_step_rank time_step_min time_step_max time_step_floor expand
    intermediate_size norm_before_gate rms_norm
""".split()


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    fields.ignore(*_HOW)
    dim, eps = fields.positive("hidden_size"), fields.take("layer_norm_epsilon", float, 1e-5)
    fields.only("hidden_act", "silu")
    fields.only("use_bias", False)
    fields.only("use_conv_bias", True)
    limits = fields.take("time_step_limit", (list, tuple), [0.0, math.inf])
    if [*limits] != [0.0, math.inf]:
        raise UserError(
            f"{fields.where}: time_step_limit: expected [0.0, Infinity], got {limits}, which is not supported"
        )
    return LMConfig(
        vocab_size=fields.positive("vocab_size"),
        dim=dim,
        num_layers=fields.positive("num_hidden_layers"),
        pattern=(
            BlockConfig(
                mixer=Mamba2(
                    num_heads=fields.positive("num_heads", 128),
                    head_dim=fields.positive("head_dim", 64),
                    state_dim=fields.positive("state_size", 128),
                    num_groups=fields.positive("n_groups", 8),
                    conv_width=fields.positive("conv_kernel", 4),
                    norm_eps=eps,
                ),
                channel=None,
            ),
        ),
        norm_eps=eps,
        residual_float32=fields.take("residual_in_fp32", bool, True),
        tie_embeddings=fields.take("tie_word_embeddings", bool, False),
    )


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = decoder.ends(config, names, table="backbone.embeddings", norm="backbone.norm_f")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.mixer", f"backbone.layers.{i}.mixer"
        norm = f"layers.{i}.mixer_norm.weight"
        found.append(same(norm, f"backbone.layers.{i}.norm.weight", names[norm]))
        kernels = [f"{ours}.{part}.kernel" for part in ("z", "x", "b", "c", "dt")]
        found.append(concatenated(kernels, f"{theirs}.in_proj.weight", [names[kernel] for kernel in kernels]))
        found += fla.linears(names, ours, theirs, {"o": "out_proj"})
        conv = f"{ours}.conv.weight"
        found.append(fla.taps(conv, [f"{theirs}.conv1d.weight"], names, [names[conv][1]]))
        others = {"conv.bias": "conv1d.bias", "dt_bias": "dt_bias", "log_rate": "A_log", "skip": "D"}
        for mine, name in {**others, "norm.weight": "norm.weight"}.items():
            shape = names[f"{ours}.{mine}"]
            found.append(same(f"{ours}.{mine}", f"{theirs}.{name}", shape, as_shape=fla.flat(shape)))
    return found


def ignored(name: str) -> bool:
    """No tensor says nothing."""
    return False


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours."""
    mixer = config.pattern[0].mixer
    if not isinstance(mixer, Mamba2):
        return None
    inner = mixer.num_heads * mixer.head_dim
    if inner % config.dim:  # they know it by its ratio to the model's width
        return None
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_heads": mixer.num_heads,
        "head_dim": mixer.head_dim,
        "state_size": mixer.state_dim,
        "n_groups": mixer.num_groups,
        "conv_kernel": mixer.conv_width,
        "expand": inner // config.dim,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": config.residual_float32,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": config.param_dtype,
    }
