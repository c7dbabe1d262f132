"""RWKV-4: ``RwkvForCausalLM`` of transformers."""

from effarch.hub.families import rwkv4 as hub
from effarch.mixers.rwkv4 import RWKV4
from effarch.mixers.rwkv_channel import RWKV4Channel
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import whole

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


def rules():
    return hub.rules(config, whole.paths(config))


def parameters(w):
    return whole.by_rules(rules(), w)
