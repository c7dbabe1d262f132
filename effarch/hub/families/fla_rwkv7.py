"""RWKV-7 (2503.14456) in flash-linear-attention's format; ``rwkv`` has the authors' own."""

from collections.abc import Mapping
from typing import Any

from effarch.config import UserError
from effarch.hub.families import decoder, fla
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, linear, same
from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import RWKV7Channel
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

ignored = fla.ignored
_HEAD_EPS = 64e-5  # of our norm per head; theirs is head_dim * norm_eps
_RANKS = {"w": "decay", "a": "a", "v": "v", "g": "gate"}


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    dim, layers = fla.begin(fields)
    heads = fields.positive("num_heads", None)
    width = fields.positive("head_dim", 64 if heads is None else dim // heads)
    if dim % width:
        raise UserError(f"{fields.where}: head_dim: expected a divisor of hidden_size {dim}, got {width}")
    eps = fields.take("norm_eps", float, 1e-5)
    if abs(width * eps - _HEAD_EPS) > 1e-3 * _HEAD_EPS:
        raise UserError(f"{fields.where}: norm_eps: expected {_HEAD_EPS / width:g} with heads of {width}, got {eps:g}")
    fields.only("hidden_act", "sqrelu")
    fields.only("norm_first", True)
    fields.only("norm_bias", True)
    fields.only("value_dim", None, dim, [dim] * layers)
    defaults = {"w": 64, "a": 64, "v": 16, "g": 128}
    ranks = {
        f"rank_{name}": fields.positive(f"{theirs}_low_rank_dim", defaults[name]) for name, theirs in _RANKS.items()
    }
    hidden, ratio = fields.positive("intermediate_size", None), fields.take("hidden_ratio", float, 4.0)
    channel = RWKV7Channel(hidden=hidden or -(-int(dim * ratio) // 32) * 32)
    mixer = RWKV7(num_heads=dim // width, head_dim=width, **ranks)
    return LMConfig(
        vocab_size=fields.positive("vocab_size"),
        dim=dim,
        num_layers=layers,
        pattern=decoder.pattern([BlockConfig(mixer=m, channel=channel) for m in fla.mixers(fields, mixer)]),
        norm="layer",
        norm_eps=eps,
        embed_norm=True,
        tie_embeddings=fields.take("tie_word_embeddings", bool, False),
    )


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = [same("embedding.table", "model.embeddings.weight", names["embedding.table"])]
    norms = {"embed_norm": "model.layers.0.pre_norm", "norm": "model.norm"}
    if not config.tie_embeddings:
        found.append(linear("unembed.kernel", "lm_head.weight", names["unembed.kernel"]))
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        norms |= {f"{ours}.mixer_norm": f"{theirs}.attn_norm", f"{ours}.channel_norm": f"{theirs}.ffn_norm"}
        found += fla.linears(names, f"{ours}.channel", f"{theirs}.ffn", {"up": "key", "down": "value"})
        found.append(same(f"{ours}.channel.mix.k", f"{theirs}.ffn.x_k", (config.dim,)))
        attends = isinstance(config.block(i).mixer, SoftmaxAttention)
        found += (fla.attention_rules if attends else layer)(names, f"{ours}.mixer", f"{theirs}.attn")
    for mine, name in norms.items():
        found += [same(f"{mine}.{part}", f"{name}.{part}", (config.dim,)) for part in ("weight", "bias")]
    return found


def layer(names: Mapping[str, Shape], ours: str, theirs: str) -> list[Rule]:
    """The tensors of one layer."""
    found = fla.linears(names, ours, theirs, {name: f"{name}_proj" for name in "rkvo"})
    for name in "rwkvag":
        shape = names[f"{ours}.mix.{name}"]
        found.append(same(f"{ours}.mix.{name}", f"{theirs}.x_{name}", shape, as_shape=(1, 1, *shape)))
    for mine, name in (("xi", "k_k"), ("alpha", "k_a"), ("norm.weight", "g_norm.weight"), ("norm.bias", "g_norm.bias")):
        shape = names[f"{ours}.{mine}"]
        found.append(same(f"{ours}.{mine}", f"{theirs}.{name}", shape, as_shape=fla.flat(shape)))
    found.append(same(f"{ours}.bonus", f"{theirs}.r_k", names[f"{ours}.bonus"]))
    for name in "wavg":
        mine, name = f"{ours}.{'value' if name == 'v' else name}", f"{theirs}.{name}_lora.lora"
        if f"{mine}.inner.kernel" not in names:  # the first layer's value is the first value
            continue
        found += fla.linears(names, mine, name, {"inner": "0", "outer": "2"})
        if (bias := names.get(f"{mine}.bias")) is not None:
            found.append(same(f"{mine}.bias", f"{name}.2.bias", bias, as_shape=fla.flat(bias)))
    return found


def export(config: LMConfig) -> dict[str, Any] | None:
    """Theirs for ours."""
    found = fla.config_json(config, RWKV7, "RWKV7ForCausalLM", "rwkv7")
    if found is None:
        return None
    mixer: RWKV7 = fla.recurrent(config, RWKV7)
    ranks = {f"{theirs}_low_rank_dim": getattr(mixer, f"rank_{name}") for name, theirs in _RANKS.items()}
    return found | {"hidden_act": "sqrelu", "head_dim": mixer.head_dim, "norm_first": True, "norm_bias": True, **ranks}
