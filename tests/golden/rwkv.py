"""What the cases of RWKV-5 to RWKV-7 share: a tiny model, the names of the authors' files, their package.

A case adds what is special to its time mix: ``{our name below the mixer: (their name below att, shape)}``. Their shapes
are those of the files; a matrix called ``.weight`` is ``[out, in]``, the others are not turned.
"""

import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from flax import nnx

from effarch.mixers.base import LayerInfo, MixerConfig
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig
from tests.golden import whole

VOCAB, DIM, LAYERS, HEADS, HIDDEN = 48, 32, 2, 4, 64
MIX, HEAD = (1, 1, DIM), (HEADS, DIM // HEADS)

Names = dict[str, tuple[str, tuple[int, ...]]]


def config(mixer: MixerConfig, channel: MixerConfig) -> LMConfig:
    """Two layers; LayerNorms of eps 1e-5, one more after the embedding, a head of its own."""
    return LMConfig(
        vocab_size=VOCAB,
        dim=DIM,
        num_layers=LAYERS,
        pattern=(BlockConfig(mixer=mixer, channel=channel),),
        norm="layer",
        norm_eps=1e-5,
        embed_norm=True,
        tie_embeddings=False,
    )


def squares(**theirs: str) -> Names:
    """Projections, by our names, and the norm per head."""
    found = {f"norm.{part}": (f"ln_x.{part}", (DIM,)) for part in ("weight", "bias")}
    return found | {f"{mine}.kernel": (f"{name}.weight", (DIM, DIM)) for mine, name in theirs.items()}


def _all(att: Callable[[int], Names], ffn: Names) -> Names:
    """Every name of ours and theirs."""

    def norm(mine: str, theirs: str) -> Names:
        return {f"{mine}.{part}": (f"{theirs}.{part}", (DIM,)) for part in ("weight", "bias")}

    found = {"embedding.table": ("emb.weight", (VOCAB, DIM)), "unembed.kernel": ("head.weight", (VOCAB, DIM))}
    found |= norm("embed_norm", "blocks.0.ln0") | norm("norm", "ln_out")
    for i in range(LAYERS):
        layer, block = f"layers.{i}.", f"blocks.{i}."
        found |= norm(layer + "mixer_norm", block + "ln1") | norm(layer + "channel_norm", block + "ln2")
        found |= {f"{layer}mixer.{mine}": (f"{block}att.{name}", shape) for mine, (name, shape) in att(i).items()}
        matrices = {"up.kernel": ("key.weight", (HIDDEN, DIM)), "down.kernel": ("value.weight", (DIM, HIDDEN))}
        both = (matrices | ffn).items()
        found |= {f"{layer}channel.{mine}": (f"{block}ffn.{name}", shape) for mine, (name, shape) in both}
    return found


def shapes(att: Callable[[int], Names], ffn: Names):
    """``shapes`` of a case. att: names below a layer's time mix. ffn: those below its channel mix that are special."""
    return dict(_all(att, ffn).values())


def parameters(w, att: Callable[[int], Names], ffn: Names, *, complement: str = ""):
    """``parameters`` of a case; tensors of theirs whose name holds ``complement`` are one minus ours."""
    return _ours(w, _all(att, ffn), complement)


def _ours(w, names: Names, complement: str):
    found = {}
    for mine, (theirs, _) in names.items():
        x = w[theirs].T if mine.endswith(".kernel") and theirs.endswith(".weight") else w[theirs]
        found[mine] = 1 - x if complement and complement in theirs else x
    return found


def time_mix_weights(att: Callable[[int], Names], weight: Callable):
    """Tensors of the second layer's time mix, by their names."""
    return {theirs: weight(theirs, whole.draw(theirs, shape)) for theirs, shape in att(1).values()}


def time_mix(mixer: MixerConfig, att: Callable[[int], Names], w, *, complement: str = ""):
    """Our module, as of the second layer, with those tensors."""

    def make():
        return mixer.make(DIM, layer=LayerInfo(index=1, count=LAYERS, first=False), rngs=nnx.Rngs(0))

    return whole.filled(make, lambda w: _ours(w, att(1), complement), w)


@contextlib.contextmanager
def _in_its_world(goose: bool):
    """The variables that the package reads, and not what it prints."""
    said = {"RWKV_V7_ON": "1" if goose else "0", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    with mock.patch.dict(os.environ, said), contextlib.redirect_stdout(io.StringIO()):
        yield


def package(*, goose: bool):
    """The authors' ``rwkv`` package as a module of its own: it is either for RWKV-7 (``goose``) or for RWKV-4 to 6."""
    path = Path(importlib.util.find_spec("rwkv").origin).parent / "model.py"
    spec = importlib.util.spec_from_file_location(f"rwkv_{'7' if goose else '4_to_6'}", path)
    module = importlib.util.module_from_spec(spec)
    with _in_its_world(goose):
        spec.loader.exec_module(module)
    return module


def logits(weights, tokens, *, goose: bool):
    """``[B, T, vocab]`` of the package in float32 on the CPU; row by row, as it knows no batches."""
    import torch

    module = package(goose=goose)
    with tempfile.TemporaryDirectory() as folder, _in_its_world(goose):
        torch.save({name: torch.tensor(x) for name, x in weights.items()}, f"{folder}/tiny.pth")
        model = module.RWKV(f"{folder}/tiny", "cpu fp32")
        rows = [model.forward(row.tolist(), None, full_output=True)[0] for row in tokens]
    return torch.stack(rows).numpy()
