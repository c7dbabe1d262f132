"""Models of flash-linear-attention as its own code has them: what is stored of them, and how it was made.

A case is a config of ours. ``TRITON_INTERPRET=1 python -m tests.hub.released tests/hub/released [name ...]``, with the
extra ``oracles`` and Triton, writes ``<name>.npz`` into the folder: the names and shapes of their class for the
``config.json`` that we export, and its logits for tensors drawn by name (``tests.golden.whole.draw``). Their kernels
run on the CPU in Triton's interpreter.
"""

import dataclasses
import importlib
import json
import sys
import warnings
from pathlib import Path

import numpy as np

from effarch.hub.export import config_json
from effarch.mixers.deltanet import DeltaNet
from effarch.mixers.gated_deltanet import GatedDeltaNet
from effarch.mixers.gla import GLA
from effarch.mixers.retnet import RetNet
from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import RWKV7Channel
from effarch.mixers.softmax_attention import SoftmaxAttention
from effarch.mixers.swiglu import SwiGLU
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import whole

FOLDER = Path(__file__).parent / "released"
TOKENS = np.random.default_rng(7).integers(0, 48, (2, 40), dtype=np.int32)


_SWIGLU = SwiGLU(hidden=40)


def _model(*mixers, channel=_SWIGLU, **more) -> LMConfig:
    pattern = tuple(BlockConfig(mixer=mixer, channel=channel) for mixer in mixers)
    return LMConfig(vocab_size=48, dim=32, num_layers=2, pattern=pattern, **{"tie_embeddings": False, **more})


_RWKV7 = RWKV7(num_heads=2, head_dim=16, rank_w=4, rank_a=5, rank_v=6, rank_g=7)
CASES: dict[str, LMConfig] = {
    "gla": _model(GLA(num_heads=2, head_dim=8, value_head_dim=16)),
    "retnet": _model(
        RetNet(num_heads=2, head_dim=16, value_head_dim=32, norm_eps=1e-5), norm_eps=1e-5, tie_embeddings=True
    ),
    "delta_net": _model(DeltaNet(num_heads=2, head_dim=16, value_head_dim=8, negative_eigenvalues=True, conv_width=3)),
    "gated_deltanet": _model(
        GatedDeltaNet(num_heads=4, num_key_heads=2, head_dim=8, value_head_dim=16),
        SoftmaxAttention(num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=500.0, qkv_bias=True),
    ),
    "rwkv7": _model(_RWKV7, channel=RWKV7Channel(hidden=64), norm="layer", norm_eps=4e-5, embed_norm=True),
}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor, decays from slow to fast."""
    x = whole.draw(name, shape)
    moved = {"A_log": 6 * x - 5, "gk_proj.1.bias": 30 * x, "w_lora.lora.2.bias": 10 * x - 8}
    return next((y for end, y in moved.items() if name.endswith(end)), x).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What is committed of a case."""

    config: dict
    shapes: dict[str, tuple[int, ...]]
    logits: np.ndarray


def stored(name: str, folder: Path = FOLDER) -> Stored:
    """The file of a case, read."""
    with np.load(folder / f"{name}.npz") as found:
        config, shapes = (json.loads(str(found[key])) for key in ("config", "shapes"))
        return Stored(config, {key: tuple(shape) for key, shape in shapes.items()}, found["logits"])


def theirs(config: dict):
    """Their model, made from our ``config.json``; on the CPU, in Triton's interpreter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no GPU; what they think of one another's code
        return _theirs(config)


def _theirs(config: dict):
    import torch
    from triton.runtime.autotuner import Autotuner

    if not hasattr(Autotuner, "whole"):  # there is nothing to tune with in the interpreter
        Autotuner.whole = Autotuner.__init__
        Autotuner.__init__ = lambda self, fn, names, configs, *a, **k: self.whole(fn, names, configs[:1], *a, **k)
    attention = importlib.import_module("fla.layers.attn")

    def attend(q, k, v, causal, window_size):
        assert causal and window_size == (-1, -1)
        parts = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True).transpose(1, 2)

    attention.flash_attn_func = attend
    cls = getattr(importlib.import_module("fla.models"), config["architectures"][0])
    how = {"fuse_cross_entropy": False, "fuse_swiglu": False}  # what must run on a GPU
    return cls(cls.config_class(**config, **how)).eval()


def shapes(model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a checkpoint of theirs holds; a tied head is the embedding."""
    tied = model.config.tie_word_embeddings
    found = {name: tuple(x.shape) for name, x in model.state_dict().items() if not name.endswith("inv_freq")}
    return {name: shape for name, shape in found.items() if not (tied and name == "lm_head.weight")}


def logits(model) -> np.ndarray:
    """Of :data:`TOKENS`, its tensors drawn."""
    import torch

    drawn = {name: torch.tensor(draw(name, shape)) for name, shape in shapes(model).items()}
    missing, unexpected = model.load_state_dict(drawn, strict=False)
    assert not unexpected and all(name == "lm_head.weight" or name.endswith("inv_freq") for name in missing)
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS).long(), use_cache=False).logits.numpy()


def make(name: str) -> Stored:
    """What their code says now."""
    config = config_json(CASES[name], "fla")
    model = theirs(config)
    return Stored(config, shapes(model), logits(model))


if __name__ == "__main__":
    for name in sys.argv[2:] or CASES:
        made = make(name)
        texts = {key: json.dumps(value) for key, value in (("config", made.config), ("shapes", made.shapes))}
        np.savez_compressed(Path(sys.argv[1]) / f"{name}.npz", logits=made.logits, **texts)
        print(name, float(np.abs(made.logits).mean()))
