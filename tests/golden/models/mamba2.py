"""Mamba-2: transformers, its torch path, two groups, chunks of 16."""

from effarch.hub.families import mamba2 as hub
from effarch.mixers.mamba2 import Mamba2
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders, whole

D, H, P, N, G, LAYERS = 16, 4, 8, 6, 2, 2

config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=LAYERS,
    pattern=(BlockConfig(mixer=Mamba2(num_heads=H, head_dim=P, state_dim=N, num_groups=G), channel=None),),
    norm_eps=1e-5,
    residual_float32=True,
)


def theirs():
    from transformers import Mamba2Config

    return Mamba2Config(
        vocab_size=48,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_heads=H,
        head_dim=P,
        state_size=N,
        n_groups=G,
        chunk_size=16,
        tie_word_embeddings=True,
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Decays from slow to fast."""
    return 6 * x - 5 if name.endswith("A_log") else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    return whole.by_rules(hub.rules(config, whole.paths(config)), w)
