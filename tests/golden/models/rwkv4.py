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


def model():
    """Theirs."""
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
    return {name: x.shape for name, x in model().state_dict().items()}


def weight(name, x):
    """Decays from slow to fast, keys large enough that the weights differ."""
    if name.endswith("time_decay"):
        return 6 * x - 5
    return 4 * x if "attention.key" in name else x


def independent(weights, tokens):
    import torch

    theirs = model()
    theirs.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
    with torch.no_grad():
        return theirs(torch.tensor(tokens, dtype=torch.long), use_cache=False).logits.numpy()


def block(w, prefix, part):
    """Our parameters of a layer's ``mixer`` or ``channel``, below it; ``prefix`` is that of their layer."""
    found = {}
    if part == "mixer":
        theirs = prefix + "attention."
        squares = {"r": "receptance", "k": "key", "v": "value", "o": "output"}
        mixes = {"r": "receptance", "k": "key", "v": "value"}
        found |= {"omega": w[theirs + "time_decay"], "bonus": w[theirs + "time_first"]}
    else:
        theirs = prefix + "feed_forward."
        squares = {"up": "key", "down": "value", "receptance": "receptance"}
        mixes = {"k": "key", "r": "receptance"}
    found |= {f"{mine}.kernel": w[f"{theirs}{name}.weight"].T for mine, name in squares.items()}
    return found | {f"mix.{mine}": 1 - w[f"{theirs}time_mix_{name}"] for mine, name in mixes.items()}


def parameters(w):
    norms = {"embed_norm": "rwkv.blocks.0.pre_ln", "norm": "rwkv.ln_out"}
    found = {"embedding.table": w["rwkv.embeddings.weight"], "unembed.kernel": w["head.weight"].T}
    for i in range(LAYERS):
        layer, theirs = f"layers.{i}.", f"rwkv.blocks.{i}."
        norms |= {layer + "mixer_norm": theirs + "ln1", layer + "channel_norm": theirs + "ln2"}
        for part in ("mixer", "channel"):
            found |= {f"{layer}{part}.{name}": x for name, x in block(w, theirs, part).items()}
    parts = ("weight", "bias")
    return found | {f"{mine}.{part}": w[f"{theirs}.{part}"] for mine, theirs in norms.items() for part in parts}
