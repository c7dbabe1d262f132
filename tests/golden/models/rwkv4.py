"""RWKV-4: ``RwkvForCausalLM`` of transformers."""

from effarch.mixers.rwkv4 import RWKV4
from effarch.mixers.rwkv_channel import RWKV4Channel
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig

VOCAB, DIM, LAYERS, HIDDEN = 48, 32, 2, 64

config = LMConfig(
    vocab_size=VOCAB,
    dim=DIM,
    num_layers=LAYERS,
    pattern=(BlockConfig(mixer=RWKV4(num_heads=4, head_dim=8), channel=RWKV4Channel(hidden=HIDDEN)),),
    norm="layer",
    norm_eps=1e-5,
    embed_norm=True,
    tie_embeddings=False,
)


def _model():
    from transformers import RwkvConfig, RwkvForCausalLM

    return RwkvForCausalLM(
        RwkvConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            num_hidden_layers=LAYERS,
            intermediate_size=HIDDEN,
            rescale_every=0,
            tie_word_embeddings=False,
        )
    ).eval()


def shapes():
    return {name: x.shape for name, x in _model().state_dict().items()}


def weight(name, x):
    """Decays from slow to fast, keys large enough that the weights differ."""
    if name.endswith("time_decay"):
        return 6 * x - 5
    return 4 * x if "attention.key" in name else x


def independent(weights, tokens):
    import torch

    model = _model()
    model.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long), use_cache=False).logits.numpy()


def parameters(w):
    norms = {"embed_norm": "rwkv.blocks.0.pre_ln", "norm": "rwkv.ln_out"}
    found = {"embedding.table": w["rwkv.embeddings.weight"], "unembed.kernel": w["head.weight"].T}
    for i in range(LAYERS):
        layer, block = f"layers.{i}.", f"rwkv.blocks.{i}."
        norms |= {layer + "mixer_norm": block + "ln1", layer + "channel_norm": block + "ln2"}
        for mine, theirs in (("r", "receptance"), ("k", "key"), ("v", "value"), ("o", "output")):
            found[f"{layer}mixer.{mine}.kernel"] = w[f"{block}attention.{theirs}.weight"].T
            if mine != "o":
                found[f"{layer}mixer.mix.{mine}"] = 1 - w[f"{block}attention.time_mix_{theirs}"]
        found[layer + "mixer.omega"] = w[block + "attention.time_decay"]
        found[layer + "mixer.bonus"] = w[block + "attention.time_first"]
        for mine, theirs in (("up", "key"), ("down", "value"), ("receptance", "receptance")):
            found[f"{layer}channel.{mine}.kernel"] = w[f"{block}feed_forward.{theirs}.weight"].T
        for mine, theirs in (("k", "key"), ("r", "receptance")):
            found[f"{layer}channel.mix.{mine}"] = 1 - w[f"{block}feed_forward.time_mix_{theirs}"]
    parts = ("weight", "bias")
    return found | {f"{mine}.{part}": w[f"{theirs}.{part}"] for mine, theirs in norms.items() for part in parts}
