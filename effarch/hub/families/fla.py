"""What the models of flash-linear-attention share: everything but the sequence mixer, and their attention layers.

    model.embeddings.weight    model.layers.<i>.{attn_norm, attn, mlp_norm, mlp}    model.norm.weight    lm_head.weight

A family beside this file is one of its recurrent layers; ``attn`` in the config names the layers that have softmax
attention instead.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from effarch.config import UserError
from effarch.hub.families import decoder
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, linear, same
from effarch.mixers.base import MixerConfig
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

Layer = Callable[[Mapping[str, Shape], str, str], list[Rule]]  # names, our prefix, their prefix

_HOW = ("attn_mode", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_l2warp")


def begin(fields: Fields) -> tuple[int, int]:
    """Width and number of layers; settles what is the same in every model."""
    fields.ignore(*_HOW)
    fields.only("attnres_block_size", None)
    return fields.positive("hidden_size"), fields.positive("num_hidden_layers")


def per_head(fields: Fields, name: str, default: float, heads: int) -> int:
    """The width of a head from a ratio: ``round(hidden_size * ratio) / heads``."""
    dim, ratio = fields.positive("hidden_size"), fields.take(name, float, default)
    width = round(dim * ratio)
    if width <= 0 or width % heads or abs(dim * ratio - width) > 1e-6 * width:
        raise UserError(f"{fields.where}: {name}: expected {heads} heads to divide {dim} x {name}, got {ratio:g}")
    return width // heads


def language_model(fields: Fields, mixer: MixerConfig, *, hidden_ratio: float = 4.0) -> LMConfig:
    """The model with this mixer: gated feed-forward layers, RMSNorms, perhaps attention in some layers.

    Args:
      hidden_ratio: the default of the field that sizes the feed-forward layers where ``intermediate_size`` is null.
    """
    dim, layers = fields.positive("hidden_size"), fields.positive("num_hidden_layers")
    fields.only("hidden_act", "swish")
    hidden, ratio = fields.positive("intermediate_size", None), fields.take("hidden_ratio", float, hidden_ratio)
    channel = SwiGLU(hidden=hidden or -(-int(dim * ratio * 2 / 3) // 256) * 256)
    return LMConfig(
        vocab_size=fields.positive("vocab_size"),
        dim=dim,
        num_layers=layers,
        pattern=decoder.pattern([BlockConfig(mixer=m, channel=channel) for m in mixers(fields, mixer)]),
        norm_eps=fields.take("norm_eps", float, 1e-6),
        tie_embeddings=fields.take("tie_word_embeddings", bool, False),
    )


def mixers(fields: Fields, mixer: MixerConfig) -> list[MixerConfig]:
    """The mixer of every layer: this one, but where the field ``attn`` says attention.

    Raises:
      UserError: layers that do not exist, a window.
    """
    dim, count = fields.positive("hidden_size"), fields.positive("num_hidden_layers")
    found: list[MixerConfig] = [mixer] * count
    given = fields.take("attn", (dict, list), [])
    for i, part in enumerate([given] if isinstance(given, dict) else given):
        inside = Fields(part, f"{fields.where}: attn {i}")
        heads = inside.positive("num_heads")
        inside.only("window_size", None)  # ours keeps the first tokens, or counts otherwise
        attention = SoftmaxAttention(
            num_heads=heads,
            num_kv_heads=inside.positive("num_kv_heads", heads),
            head_dim=dim // heads,
            rope_theta=inside.take("rope_theta", float, 10000.0),
            qkv_bias=inside.take("qkv_bias", bool, False),
        )
        for layer in inside.take("layers", list):
            if type(layer) is not int or not 0 <= layer < count:
                raise UserError(f"{inside.where}: layers: expected numbers below {count}, got {layer!r}")
            found[layer] = attention
        inside.finish()
    return found


def model_rules(config: LMConfig, names: Mapping[str, Shape], layer: Layer) -> list[Rule]:
    """The tensors of a model; ``layer`` gives those of a recurrent layer."""
    found = decoder.ends(config, names, table="model.embeddings", norm="model.norm")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for mine, name in (("mixer_norm", "attn_norm"), ("channel_norm", "mlp_norm")):
            found.append(same(f"{ours}.{mine}.weight", f"{theirs}.{name}.weight", names[f"{ours}.{mine}.weight"]))
        found += linears(
            names, f"{ours}.channel.mlp", f"{theirs}.mlp", {n: f"{n}_proj" for n in ("gate", "up", "down")}
        )
        attends = isinstance(config.block(i).mixer, SoftmaxAttention)
        found += (attention_rules if attends else layer)(names, f"{ours}.mixer", f"{theirs}.attn")
    return found


def linears(names: Mapping[str, Shape], ours: str, theirs: str, pairs: Mapping[str, str]) -> list[Rule]:
    """Projections by our name and theirs, their biases with them; those called ``o`` sum over heads and channels."""
    found = []
    for mine, name in pairs.items():
        kernel = f"{ours}.{mine}.kernel"
        contracted = 2 if mine.split(".")[-1] == "o" and len(names[kernel]) == 3 else 1
        found.append(linear(kernel, f"{theirs}.{name}.weight", names[kernel], contracted=contracted))
        if (bias := names.get(f"{ours}.{mine}.bias")) is not None:
            found.append(same(f"{ours}.{mine}.bias", f"{theirs}.{name}.bias", bias, as_shape=flat(bias)))
    return found


def flat(shape: Shape) -> Shape:
    """The same numbers in one row."""
    return (int(np.prod(shape)),)


def attention_rules(names: Mapping[str, Shape], ours: str, theirs: str) -> list[Rule]:
    """The tensors of an attention layer."""
    return linears(names, f"{ours}.qkv", theirs, {name: f"{name}_proj" for name in "qkvo"})


def taps(ours: str, theirs: list[str], names: Mapping[str, Shape], widths: list[int]) -> Rule:
    """One convolution of ours ``[W, C]`` and theirs ``[c, 1, W]``, the channels of each of theirs after another's."""
    width, ends = names[ours][0], np.cumsum(widths)[:-1]

    def read(*xs: np.ndarray) -> tuple[np.ndarray]:
        return (np.concatenate([x[:, 0].T for x in xs], axis=1),)

    def write(x: np.ndarray) -> list[np.ndarray]:
        return [part.T[:, None] for part in np.split(x, ends, axis=1)]

    return Rule((ours,), tuple(theirs), tuple((channels, 1, width) for channels in widths), read, write)


def config_json(config: LMConfig, kind: type[MixerConfig], name: str, model_type: str) -> dict[str, Any] | None:
    """The part of ``config.json`` that all models share; None where a layer is none of theirs.

    Args:
      config: ours. kind: of the recurrent mixer. name: of the class for causal language models. model_type: theirs.
    """
    blocks = [config.block(i) for i in range(config.num_layers)]
    channels = {block.channel for block in blocks}
    recurrent = {block.mixer for block in blocks if type(block.mixer) is kind}
    attention = {block.mixer for block in blocks if type(block.mixer) is SoftmaxAttention}
    known = all(type(block.mixer) in (kind, SoftmaxAttention) for block in blocks)
    if not known or len(recurrent) != 1 or len(channels) != 1:
        return None
    (channel,) = channels
    if channel is None:
        return None
    specs = [_attention(a, [i for i, b in enumerate(blocks) if b.mixer == a]) for a in _sorted(attention)]
    return {
        "architectures": [name],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": getattr(channel, "hidden", None),
        "num_hidden_layers": config.num_layers,
        "hidden_act": "swish",
        "norm_eps": config.norm_eps,
        "attn": specs[0] if len(specs) == 1 else specs or None,
        "tie_word_embeddings": config.tie_embeddings,
        "fuse_norm": True,
        "torch_dtype": config.param_dtype,
    }


def _sorted(found: Iterable[MixerConfig]) -> list[SoftmaxAttention]:
    return sorted((a for a in found if isinstance(a, SoftmaxAttention)), key=repr)


def _attention(attention: SoftmaxAttention, layers: list[int]) -> dict[str, Any]:
    return {
        "layers": layers,
        "num_heads": attention.num_heads,
        "num_kv_heads": attention.num_kv_heads,
        "qkv_bias": attention.qkv_bias,
        "rope_theta": attention.rope_theta,
    }


def recurrent(config: LMConfig, kind: type[MixerConfig]) -> Any:
    """The config of the recurrent layers."""
    return next(block.mixer for block in config.pattern if type(block.mixer) is kind)


def ignored(name: str) -> bool:
    """Buffers of rotary positions."""
    return name.endswith("inv_freq")
