"""What the formats of Transformer decoders share: fields of the same meaning, tensors of the same names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effarch.config import UserError
from effarch.hub.fields import Fields
from effarch.hub.rope import Rope, exported
from effarch.hub.rules import Rule, Shape, concatenated, linear, same
from effarch.mixers.base import MixerConfig
from effarch.mixers.geglu import GeGLU
from effarch.mixers.gelu_mlp import GeluMLP
from effarch.mixers.sliding_window import SlidingWindow
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

MOST_LAYERS = 10_000
FULL, SLIDING = "full_attention", "sliding_attention"
SILU, GELU = ("silu", "swish"), ("gelu",)
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh")

#: Our norms of a layer -> theirs.
LLAMA_NORMS = {"mixer_norm": "input_layernorm", "channel_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
    "mixer_norm": "input_layernorm",
    "mixer_post_norm": "post_attention_layernorm",
    "channel_norm": "pre_feedforward_layernorm",
    "channel_post_norm": "post_feedforward_layernorm",
}


def heads(fields: Fields, *, kv_heads: int | None = None, head_dim: int | None = None) -> dict[str, int]:
    """Sizes of heads. ``kv_heads``, ``head_dim``: the family's own; None: as many as queries, the width by those."""
    dim, count = fields.positive("hidden_size"), fields.positive("num_attention_heads")
    return {
        "num_heads": count,
        "num_kv_heads": fields.positive("num_key_value_heads", count if kv_heads is None else kv_heads),
        "head_dim": fields.positive("head_dim", max(dim // count, 1) if head_dim is None else head_dim),
    }


def depth(fields: Fields, name: str = "num_hidden_layers", *, old: str | None = None) -> int:
    """The number of layers. Raises ``UserError`` where no model has so many: each is looked at before any tensor."""
    found = fields.positive(name, old=old)
    if found > MOST_LAYERS:
        raise UserError(f"{fields.where}: {name}: expected at most {MOST_LAYERS}, got {found}")
    return found


def equal_heads(fields: Fields, dim: int, heads: int) -> dict[str, int]:
    """Sizes of heads that share the width, as many of keys as of queries. Raises ``UserError`` if it is no multiple."""
    if dim % heads:
        raise UserError(
            f"{fields.where}: num_attention_heads (n_head): expected a divisor of the width {dim}, got {heads}"
        )
    return {"num_heads": heads, "num_kv_heads": heads, "head_dim": dim // heads}


def attention(sizes: Mapping[str, int], rope: Rope, *, window: int | None = None, **options: Any) -> SoftmaxAttention:
    """Softmax attention, over the last ``window`` tokens where there is one."""
    options = {**sizes, **rope.options, **options}
    return SoftmaxAttention(**options) if window is None else SlidingWindow(window=window, sinks=0, **options)


def gated(fields: Fields, *, name: str = "hidden_act", act: str = "silu", bias: bool = False) -> MixerConfig:
    """The gated feed-forward layer; ``name``, ``act``: field of its activation, and the family's own."""
    found = fields.only(name, *dict.fromkeys((act, *SILU, *GELU, *GELU_TANH)))
    hidden = fields.positive("intermediate_size")
    if found in SILU:
        return SwiGLU(hidden=hidden, bias=bias)
    return GeGLU(hidden=hidden, bias=bias, approximate=found in GELU_TANH)


def plain(fields: Fields, name: str, act: str, hidden: int) -> GeluMLP:
    """The feed-forward layer of two projections; ``name``, ``act``: field of its activation, and the family's own."""
    found = fields.only(name, *dict.fromkeys((act, *GELU, *GELU_TANH, "relu")))
    return GeluMLP(hidden=hidden, activation="relu" if found == "relu" else "gelu", approximate=found in GELU_TANH)


def layer_types(fields: Fields, count: int, default: Callable[[int], str]) -> list[str]:
    """Which layers see all and which a window; ``default``: of layer i where the config does not say."""
    found = fields.take("layer_types", list, [default(i) for i in range(count)])
    if len(found) != count or any(kind not in (FULL, SLIDING) for kind in found):
        raise UserError(f"{fields.where}: layer_types: expected {count} of {FULL}, {SLIDING}, got {found}")
    return found


def windows(fields: Fields, kinds: Sequence[str], window: int | None) -> list[int | None]:
    """The window of every layer, None where it sees all. Raises ``UserError`` where a sliding layer has none."""
    if SLIDING in kinds and window is None:
        raise UserError(f"{fields.where}: sliding_window: expected a whole number for layers of {SLIDING}, got null")
    return [window if kind == SLIDING else None for kind in kinds]


def qwen_windows(fields: Fields, count: int) -> list[int | None]:
    """Windows as Qwen has them: in the layers from ``max_window_layers`` on, if ``use_sliding_window``."""
    window = fields.nullable("sliding_window", int, 4096)
    window = window if fields.take("use_sliding_window", bool, False) else None
    first = fields.take("max_window_layers", int, 28)
    kinds = layer_types(fields, count, lambda i: SLIDING if window is not None and i >= first else FULL)
    return windows(fields, kinds, window)


def pattern(blocks: Sequence[BlockConfig]) -> tuple[BlockConfig, ...]:
    """The shortest list of blocks that these repeat."""
    whole = range(len(blocks))
    return next(tuple(blocks[:n]) for n in range(1, len(blocks) + 1) if all(blocks[i] == blocks[i % n] for i in whole))


def lm(fields: Fields, blocks: Sequence[BlockConfig], *, tied: bool = False, **more: Any) -> LMConfig:
    """The model of these layers, its pattern as short as it can be.

    Args:
      blocks: its layers. tied: the family's own default. more: fields of our config; ``dim`` and ``norm_eps`` are
        ``hidden_size`` and ``rms_norm_eps`` (1e-6 by default) where they are not given.
    """
    if "dim" not in more:
        more["dim"] = fields.positive("hidden_size")
    if "norm_eps" not in more:
        more["norm_eps"] = fields.take("rms_norm_eps", float, 1e-6)
    return LMConfig(
        vocab_size=fields.positive("vocab_size"),
        num_layers=len(blocks),
        pattern=pattern(blocks),
        tie_embeddings=fields.take("tie_word_embeddings", bool, tied),
        **more,
    )


def gemma_options(fields: Fields) -> dict[str, Any]:
    """What the attention of Gemma 2 and 3 has beside sizes, positions and window."""
    fields.only("use_bidirectional_attention", False)
    biased = fields.take("attention_bias", bool, False)
    scalar = fields.take("query_pre_attn_scalar", float, 256.0)
    if scalar <= 0:
        raise UserError(f"{fields.where}: query_pre_attn_scalar: expected a number above 0, got {scalar:g}")
    return {"qkv_bias": biased, "out_bias": biased, "query_scale": scalar**-0.5}


def gemma(fields: Fields, mixers: Sequence[MixerConfig], *, logit_cap: float | None) -> LMConfig:
    """A Gemma with these mixers."""
    fields.ignore("hidden_act", "cache_implementation")
    channel = gated(fields, name="hidden_activation", act="gelu_pytorch_tanh")
    return lm(
        fields,
        [BlockConfig(mixer=mixer, channel=channel) for mixer in mixers],
        tied=True,
        norm="rms_plus_one",
        post_norms=True,
        embed_scale=fields.positive("hidden_size") ** 0.5,
        logit_cap=logit_cap,
    )


def ends(config: LMConfig, names: Mapping[str, Shape], *, table: str, norm: str, head: str = "lm_head") -> list[Rule]:
    """Embedding, last norm and head."""
    found = [same("embedding.table", f"{table}.weight", names["embedding.table"])]
    found += norms("norm", norm, names)
    if not config.tie_embeddings:
        found.append(linear("unembed.kernel", f"{head}.weight", names["unembed.kernel"]))
    return found


def norms(ours: str, theirs: str, names: Mapping[str, Shape]) -> list[Rule]:
    """Weight of a norm, and its bias if there is one."""
    parts = [part for part in ("weight", "bias") if f"{ours}.{part}" in names]
    return [same(f"{ours}.{part}", f"{theirs}.{part}", names[f"{ours}.{part}"]) for part in parts]


def projection(
    ours: str, theirs: str, names: Mapping[str, Shape], *, contracted: int = 1, transposed: bool = True
) -> list[Rule]:
    """Kernel of a projection, and its bias if there is one; arguments as :func:`effarch.hub.rules.linear`."""
    kernel = names[f"{ours}.kernel"]
    found = [linear(f"{ours}.kernel", f"{theirs}.weight", kernel, contracted=contracted, transposed=transposed)]
    if f"{ours}.bias" in names:
        bias = names[f"{ours}.bias"]
        wide = 1
        for size in bias:
            wide *= size
        found.append(same(f"{ours}.bias", f"{theirs}.bias", bias, as_shape=(wide,)))
    return found


def rules(
    config: LMConfig,
    names: Mapping[str, Shape],
    *,
    layer_norms: Mapping[str, str] = LLAMA_NORMS,
    packed: bool = False,
) -> list[Rule]:
    """The tensors of a model with Llama's names.

    Args:
      config, names: of our model. layer_norms: our norms of a layer -> theirs.
      packed: q, k and v in one tensor, and gate and up (Phi-3).
    """
    found = ends(config, names, table="model.embed_tokens", norm="model.norm")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        for mine, name in layer_norms.items():
            found += norms(f"{ours}.{mine}", f"{theirs}.{name}", names)
        groups = {"mixer.qkv": ("self_attn", "qkv"), "channel.mlp": ("mlp", ("gate", "up"))}
        for where, (name, parts) in groups.items():
            if packed:
                kernels = [f"{ours}.{where}.{part}.kernel" for part in parts]
                whole = f"{theirs}.{name}.{'qkv' if parts == 'qkv' else 'gate_up'}_proj.weight"
                found.append(concatenated(kernels, whole, [names[kernel] for kernel in kernels]))
                continue
            for part in parts:
                found += projection(f"{ours}.{where}.{part}", f"{theirs}.{name}.{part}_proj", names)
        found += projection(f"{ours}.mixer.qkv.o", f"{theirs}.self_attn.o_proj", names, contracted=2)
        found += projection(f"{ours}.channel.mlp.down", f"{theirs}.mlp.down_proj", names)
        for part in ("q_norm", "k_norm"):
            found += norms(f"{ours}.mixer.{part}", f"{theirs}.self_attn.{part}", names)
    return found


def ignored(name: str) -> bool:
    """Tensors that older files have and that say nothing."""
    return name.endswith("rotary_emb.inv_freq")


def renamed(names: Sequence[str], prefix: str = "model.") -> dict[str, str]:
    """Names as models with a head have them; a file of the bare model lacks their prefix."""
    bare = not any(name.startswith(prefix) for name in names)
    return {name: prefix + name if bare and name != "lm_head.weight" else name for name in names}


def export(config: LMConfig, *, model_type: str, architecture: str, **more: Any) -> dict[str, Any] | None:
    """Theirs for ours, for models with Llama's names, as their first layer has it; None where that is something else.

    Args:
      config: of our model. model_type, architecture: what it is called. more: further fields.
    """
    first, channel = config.pattern[0].mixer, config.pattern[0].channel
    if not isinstance(first, SoftmaxAttention) or not isinstance(channel, SwiGLU | GeGLU):
        return None
    act = "silu" if isinstance(channel, SwiGLU) else "gelu_pytorch_tanh" if channel.approximate else "gelu"
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": channel.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": first.num_heads,
        "num_key_value_heads": first.num_kv_heads,
        "head_dim": first.head_dim,
        "hidden_act": act,
        "rms_norm_eps": config.norm_eps,
        **exported(first),
        "tie_word_embeddings": config.tie_embeddings,
        **more,
        "torch_dtype": config.param_dtype,
    }


def sliding_fields(config: LMConfig) -> dict[str, Any]:
    """The fields of Qwen's windows."""
    mixers = [config.block(i).mixer for i in range(config.num_layers)]
    found = [mixer.window if isinstance(mixer, SlidingWindow) else None for mixer in mixers]
    window = next((w for w in found if w is not None), None)
    types = [FULL if w is None else SLIDING for w in found]
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": types.index(SLIDING) if SLIDING in types else config.num_layers,
        "layer_types": types,
    }
