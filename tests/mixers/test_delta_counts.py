"""Parameter counts of published models, those of the classes of flash-linear-attention and transformers."""

import jax
import pytest
from flax import nnx

from effarch.mixers.deltanet import DeltaNet
from effarch.mixers.gated_deltanet import GatedDeltaNet
from effarch.mixers.kda import KDA
from effarch.mixers.mamba1 import Mamba1
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig, make_lm


def with_ffn(mixer, dim, layers):
    """As in flash-linear-attention: a gated feed-forward of 8/3 of the width, rounded up to 256s; V 32000, untied."""
    hidden = 256 * -(-(8 * dim // 3) // 256)
    block = BlockConfig(mixer=mixer, channel=SwiGLU(hidden=hidden))
    return LMConfig(vocab_size=32000, dim=dim, num_layers=layers, pattern=(block,), tie_embeddings=False)


def mamba(dim, layers):
    """Mamba's published models: no channel mixer, tied embeddings."""
    block = BlockConfig(mixer=Mamba1(), channel=None)
    return LMConfig(vocab_size=50280, dim=dim, num_layers=layers, pattern=(block,))


COUNTS = {
    "DeltaNet 340M": (with_ffn(DeltaNet(num_heads=8), 1024, 24), 374_362_112),
    "DeltaNet 1.3B": (with_ffn(DeltaNet(), 2048, 24), 1_365_677_056),
    "KDA 340M": (with_ffn(KDA(num_heads=8), 1024, 24), 386_994_368),
    "KDA 1.3B": (with_ffn(KDA(), 2048, 24), 1_390_941_568),
    "Gated DeltaNet 1.3B": (with_ffn(GatedDeltaNet(), 2048, 21), 1_387_348_732),
    "Gated DeltaNet 340M": (with_ffn(GatedDeltaNet(num_heads=3), 1024, 21), 379_764_350),
    "Gated DeltaNet 340M of flame": (with_ffn(GatedDeltaNet(), 1024, 21), 512_272_124),
    "Mamba 130m": (mamba(768, 24), 129_135_360),
    "Mamba 370m": (mamba(1024, 48), 371_516_416),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_published_models(name):
    config, count = COUNTS[name]
    params = nnx.split(jax.eval_shape(lambda: make_lm(config)), nnx.Param, ...)[1]
    assert sum(x.size for x in jax.tree.leaves(params)) == count
