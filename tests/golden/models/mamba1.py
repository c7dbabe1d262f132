"""Mamba: transformers, its torch path."""

from effarch.hub.families import mamba1 as hub
from effarch.mixers.mamba1 import Mamba1
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import decoders, whole

D, N, RANK, LAYERS = 16, 4, 3, 2

config = LMConfig(
    vocab_size=48,
    dim=D,
    num_layers=LAYERS,
    pattern=(BlockConfig(mixer=Mamba1(state_size=N, rank=RANK), channel=None),),
    norm_eps=1e-5,
    residual_float32=True,
)


def theirs():
    from transformers import MambaConfig

    return MambaConfig(
        vocab_size=48, hidden_size=D, state_size=N, time_step_rank=RANK, expand=2, num_hidden_layers=LAYERS
    )


def shapes():
    return decoders.shapes(theirs())


def weight(name, x):
    """Decays from slow to fast."""
    return 2 * x - 1 if name.endswith("A_log") else x


def independent(weights, tokens):
    return decoders.logits(theirs(), weights, tokens)


def parameters(w):
    return whole.by_rules(hub.rules(config, whole.paths(config)), w)
