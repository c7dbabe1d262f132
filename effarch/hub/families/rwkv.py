"""RWKV-4 to RWKV-7 as their authors publish them: tensors and nothing else, the sizes read off their shapes.

    emb.weight    blocks.<i>.{ln1, att, ln2, ffn}    blocks.0.ln0    ln_out    head.weight

RWKV-4 and RWKV-5 store one minus our mixes, which is exact only where a mix is not small: they are read, not written.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from effarch.config import UserError
from effarch.hub.families import fla
from effarch.hub.rules import Rule, Shape, linear, same
from effarch.mixers.base import MixerConfig
from effarch.mixers.rwkv4 import RWKV4
from effarch.mixers.rwkv5 import RWKV5
from effarch.mixers.rwkv6 import RWKV6
from effarch.mixers.rwkv7 import RWKV7
from effarch.mixers.rwkv_channel import ChannelMixConfig, RWKV4Channel, RWKV5Channel, RWKV6Channel, RWKV7Channel
from effarch.models.block import BlockConfig
from effarch.models.lm import LMConfig


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How the parts of a model are called; parts inside of a layer below ``blocks.<i>``."""

    embedding: str = "emb.weight"
    prefix: str = ""
    att: str = "att"
    ffn: str = "ffn"
    ln0: str = "ln0"
    long_mixes: bool = False

    def mix(self, name: str) -> str:
        """The tensor of a mix of RWKV-4."""
        names = {"r": "receptance", "k": "key", "v": "value"} if self.long_mixes else {}
        return f"time_mix_{names.get(name, name)}"


def is_ours(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are the tensors of such a file."""
    return {"emb.weight", "ln_out.weight", "blocks.0.ln0.weight"} <= set(shapes)


def config_of(shapes: Mapping[str, Shape], where: str) -> LMConfig:
    """Our config for the shapes of a file's tensors.

    Raises:
      UserError: a version that is not read here (RWKV-5.0 and 5.1, RWKV-4's variants).
    """

    def shape(name: str, rank: int) -> Shape:
        if len(found := shapes.get(name, ())) != rank:
            raise UserError(f"{where}: tensor {name}: expected one of {rank} dimensions, got {list(found) or 'none'}")
        return found

    vocab, dim = shape("emb.weight", 2)
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.") and _numbered(name))
    mixer, channel = _mixers(shape, shapes, where)
    hidden = shape("blocks.0.ffn.key.weight", 2)[0]
    return lm_config(vocab, dim, layers, mixer, channel(hidden=hidden))


def lm_config(vocab: int, dim: int, layers: int, mixer: MixerConfig, channel: ChannelMixConfig) -> LMConfig:
    """What all versions have: LayerNorms of eps 1e-5, one more after the embedding, a head of its own."""
    return LMConfig(
        vocab_size=vocab,
        dim=dim,
        num_layers=layers,
        pattern=(BlockConfig(mixer=mixer, channel=channel),),
        norm="layer",
        norm_eps=1e-5,
        embed_norm=True,
        tie_embeddings=False,
    )


def _numbered(name: str) -> bool:
    return name.split(".")[1].isdecimal()


def _mixers(
    shape: Callable[[str, int], Shape], shapes: Mapping[str, Shape], where: str
) -> tuple[MixerConfig, type[ChannelMixConfig]]:
    att = "blocks.0.att"
    if f"{att}.r_k" in shapes:
        heads, width = shape(f"{att}.r_k", 2)
        ranks = {f"rank_{name}": shape(f"{att}.{name}1", 2)[1] for name in "wag"}
        value = shape("blocks.1.att.v1", 2)[1] if "blocks.1.ln1.weight" in shapes else 1  # the first layer has none
        return RWKV7(num_heads=heads, head_dim=width, rank_v=value, **ranks), RWKV7Channel
    if f"{att}.time_maa_w1" in shapes:
        heads, width = shape(f"{att}.time_faaaa", 2)
        mix, decay = shape(f"{att}.time_maa_w2", 3)[1], shape(f"{att}.time_decay_w1", 2)[1]
        return RWKV6(num_heads=heads, head_dim=width, rank_mix=mix, rank_w=decay), RWKV6Channel
    if f"{att}.gate.weight" in shapes:
        heads, width = shape(f"{att}.time_faaaa", 2)
        return RWKV5(num_heads=heads, head_dim=width), RWKV5Channel
    if f"{att}.time_first" in shapes and f"{att}.ln_x.weight" not in shapes:
        return rwkv4(shape(f"{att}.time_first", 1)[0]), RWKV4Channel
    raise UserError(f"{where}: expected the tensors of RWKV-4, RWKV-5.2, RWKV-6 or RWKV-7, got those of another model")


def rwkv4(channels: int) -> RWKV4:
    """Its mixer has no heads; ours lays the channels out as heads of 64 where that divides."""
    width = math.gcd(channels, 64)
    return RWKV4(num_heads=channels // width, head_dim=width)


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    return model_rules(config, names, Spelling())


def model_rules(config: LMConfig, names: Mapping[str, Shape], spelling: Spelling) -> list[Rule]:
    """The tensors of a model under the names of a spelling."""
    start = spelling.prefix
    found = [
        same("embedding.table", start + spelling.embedding, names["embedding.table"]),
        linear("unembed.kernel", "head.weight", names["unembed.kernel"]),
    ]
    norms = {"embed_norm": f"{start}blocks.0.{spelling.ln0}", "norm": f"{start}ln_out"}
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"{start}blocks.{i}"
        norms |= {f"{ours}.mixer_norm": f"{theirs}.ln1", f"{ours}.channel_norm": f"{theirs}.ln2"}
        kind = type(config.block(i).mixer)
        found += _time_mix(names, f"{ours}.mixer", f"{theirs}.{spelling.att}", kind, spelling)
        found += _channel_mix(names, f"{ours}.channel", f"{theirs}.{spelling.ffn}", kind, spelling)
    for mine, name in norms.items():
        found += [same(f"{mine}.{part}", f"{name}.{part}", (config.dim,)) for part in ("weight", "bias")]
    return found


def _time_mix(
    names: Mapping[str, Shape], ours: str, theirs: str, kind: type[MixerConfig], spelling: Spelling
) -> list[Rule]:
    squares = {"r": "receptance", "k": "key", "v": "value", "o": "output", "gate": "gate"}
    found = fla.linears(names, ours, theirs, {n: x for n, x in squares.items() if f"{ours}.{n}.kernel" in names})
    if kind is RWKV4:
        found += [
            _flat(names, f"{ours}.{n}", f"{theirs}.{x}") for n, x in (("omega", "time_decay"), ("bonus", "time_first"))
        ]
        return found + [_complement(names, f"{ours}.mix.{n}", f"{theirs}.{spelling.mix(n)}") for n in "rkv"]
    found += [_flat(names, f"{ours}.norm.{part}", f"{theirs}.ln_x.{part}") for part in ("weight", "bias")]
    if kind is RWKV5:
        found += [
            _as_is(names, f"{ours}.{n}", f"{theirs}.{x}") for n, x in (("omega", "time_decay"), ("bonus", "time_faaaa"))
        ]
        return found + [_complement(names, f"{ours}.mix.{n}", f"{theirs}.{spelling.mix(n)}") for n in "rkvg"]
    return found + (_time_mix6 if kind is RWKV6 else _time_mix7)(names, ours, theirs)


def _time_mix6(names: Mapping[str, Shape], ours: str, theirs: str) -> list[Rule]:
    found = [_mix(names, f"{ours}.mix.{name}", f"{theirs}.time_maa_{name}") for name in "wkvrg"]
    found.append(_mix(names, f"{ours}.mix.base", f"{theirs}.time_maa_x"))
    into, count, rank = names[f"{ours}.mix.inner.kernel"]
    found.append(
        same(f"{ours}.mix.inner.kernel", f"{theirs}.time_maa_w1", (into, count, rank), as_shape=(into, count * rank))
    )
    found += [
        _as_is(names, f"{ours}.{n}", f"{theirs}.{x}")
        for n, x in (("mix.outer", "time_maa_w2"), ("bonus", "time_faaaa"))
    ]
    return found + _low_rank(names, f"{ours}.w", *(f"{theirs}.time_decay{n}" for n in ("", "_w1", "_w2")))


def _time_mix7(names: Mapping[str, Shape], ours: str, theirs: str) -> list[Rule]:
    found = [_mix(names, f"{ours}.mix.{name}", f"{theirs}.x_{name}") for name in "rwkvag"]
    found += [_mix(names, f"{ours}.{mine}", f"{theirs}.{name}") for mine, name in (("xi", "k_k"), ("alpha", "k_a"))]
    found.append(_as_is(names, f"{ours}.bonus", f"{theirs}.r_k"))
    for name in "wavg":
        mine = f"{ours}.{'value' if name == 'v' else name}"
        if f"{mine}.inner.kernel" in names:  # the first layer's value is the first value
            found += _low_rank(names, mine, *(f"{theirs}.{name}{n}" for n in range(3)))
    return found


def _channel_mix(
    names: Mapping[str, Shape], ours: str, theirs: str, kind: type[MixerConfig], spelling: Spelling
) -> list[Rule]:
    if kind is RWKV7:
        found = fla.linears(names, ours, theirs, {"up": "key", "down": "value"})
        return [*found, _mix(names, f"{ours}.mix.k", f"{theirs}.x_k")]
    found = fla.linears(names, ours, theirs, {"up": "key", "down": "value", "receptance": "receptance"})
    if kind is RWKV6:
        return found + [_mix(names, f"{ours}.mix.{name}", f"{theirs}.time_maa_{name}") for name in "kr"]
    return found + [_complement(names, f"{ours}.mix.{name}", f"{theirs}.{spelling.mix(name)}") for name in "kr"]


def _low_rank(names: Mapping[str, Shape], ours: str, bias: str, inner: str, outer: str) -> list[Rule]:
    kernels = {f"{ours}.inner.kernel": inner, f"{ours}.outer.kernel": outer}
    found = [linear(mine, name, names[mine], transposed=False) for mine, name in kernels.items()]
    return found if f"{ours}.bias" not in names else [*found, _mix(names, f"{ours}.bias", bias)]


def _as_is(names: Mapping[str, Shape], ours: str, theirs: str) -> Rule:
    return same(ours, theirs, names[ours])


def _flat(names: Mapping[str, Shape], ours: str, theirs: str) -> Rule:
    return same(ours, theirs, names[ours], as_shape=fla.flat(names[ours]))


def _mix(names: Mapping[str, Shape], ours: str, theirs: str) -> Rule:
    return same(ours, theirs, names[ours], as_shape=(1, 1, *fla.flat(names[ours])))


def _complement(names: Mapping[str, Shape], ours: str, theirs: str) -> Rule:
    shape = names[ours]

    def other(x: np.ndarray) -> np.ndarray:
        return 1 - x.astype(np.promote_types(np.float32, x.dtype))

    def read(x: np.ndarray) -> tuple[np.ndarray]:
        return (other(x).reshape(shape),)

    def write(x: np.ndarray) -> tuple[np.ndarray]:
        return (other(x).reshape(1, 1, -1).astype(x.dtype),)

    return Rule((ours,), (theirs,), ((1, 1, *fla.flat(shape)),), read, write)


def ignored(name: str) -> bool:
    """What files of RWKV-7 may hold for the value residual of a first layer, which has none."""
    return name.startswith("blocks.0.att.v") and name[-1] in "012"
