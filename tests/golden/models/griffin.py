"""Griffin: transformers' RecurrentGemma, two recurrent blocks and one of local attention."""

from effarch.mixers.geglu import GeGLU
from effarch.mixers.rg_lru import RGLRU
from effarch.mixers.sliding_window import SlidingWindow
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders

D, HEADS, WIDTH, LAYERS, WINDOW = 32, 4, 8, 3, 7

mlp = GeGLU(hidden=40, bias=True)
recurrent = BlockConfig(mixer=RGLRU(num_heads=HEADS, head_dim=WIDTH), channel=mlp)
local = SlidingWindow(
    num_heads=HEADS, num_kv_heads=1, head_dim=WIDTH, rope_fraction=0.5, out_bias=True, window=WINDOW, sinks=0
)
config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=LAYERS,
    pattern=(recurrent, recurrent, BlockConfig(mixer=local, channel=mlp)),
    norm="rms_plus_one",
    embed_scale=True,
    logit_cap=3.0,
)


def theirs():
    from transformers import RecurrentGemmaConfig

    return RecurrentGemmaConfig(
        vocab_size=48,
        hidden_size=D,
        intermediate_size=2 * 40,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        attention_window_size=WINDOW,
        logits_soft_cap=3.0,
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Decays from slow to fast; norms about 1."""
    if name.endswith("recurrent_param"):
        return 3 * x - 3
    return x - 0.5 if "norm" in name else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    found = {"embedding.table": w["model.embed_tokens.weight"], "norm.weight": w["model.final_norm.weight"]}
    norms = {f"{name}_norm.weight": f"{part}_pre_norm.weight" for name, part in NORMS.items()}
    linears = {f"channel.mlp.{name}": f"mlp_block.{name}_proj" for name in ("gate", "up", "down")}
    for i in range(LAYERS):
        found |= decoders.moved(w, f"layers.{i}", f"model.layers.{i}", linears, norms)
    others = {"conv.bias": "conv_1d.bias", "rate": "rg_lru.recurrent_param"}
    for mine, name in (("a", "recurrent"), ("i", "input")):
        others |= {f"{mine}.kernel": f"rg_lru.{name}_gate_weight", f"{mine}.bias": f"rg_lru.{name}_gate_bias"}
    linears = {"x": "linear_x", "gate": "linear_y", "o": "linear_out"}
    for i in (0, 1):
        ours, source = f"layers.{i}.mixer", f"model.layers.{i}.temporal_block"
        found |= decoders.moved(w, ours, source, linears, others)
        found[f"{ours}.conv.weight"] = w[f"{source}.conv_1d.weight"][:, 0].T
    return found | decoders.moved(w, "layers.2.mixer", "model.layers.2.temporal_block", decoders.ATTENTION, {})


NORMS = {"mixer": "temporal", "channel": "channel"}
