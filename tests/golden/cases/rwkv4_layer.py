"""RWKV-4: time mix and channel mix, each by itself: transformers' ``RwkvSelfAttention`` and ``RwkvFeedForward``."""

from flax import nnx

from effarch.mixers import Context, LayerInfo
from tests.golden import whole
from tests.golden.models.rwkv4 import DIM, config, model, rules

PARTS = {"attention": "mixer", "feed_forward": "channel"}
LAYER = "rwkv.blocks.1."


def inputs(rng):
    return {"x": rng.normal(size=(2, 40, DIM))}


def weights(rng):
    shapes = whole.stored("rwkv4").shapes
    drawn = whole.weights("rwkv4", {name: shape for name, shape in shapes.items() if name.startswith(LAYER)})
    return {name.removeprefix(LAYER): x for name, x in drawn.items() if ".ln" not in name}


def below(part, w):
    return {name: x for name, x in w.items() if name.startswith(part)}


def independent(x, **w):
    from torch.func import functional_call

    theirs = model().rwkv.blocks[1]
    named = {part: {name.removeprefix(f"{part}."): tensor for name, tensor in below(part, w).items()} for part in PARTS}
    return {part: functional_call(getattr(theirs, part), named[part], x)[0] for part in PARTS}


def ours(x, **w):
    ctx, _ = Context.of(*x.shape[:2])
    found = {}
    for theirs, mine in PARTS.items():
        start, layer = f"layers.1.{mine}.", LayerInfo(index=1, count=2, first=False)
        inside = [rule for rule in rules() if rule.ours[0].startswith(start)]

        def parameters(w, inside=inside, start=start):
            read = whole.by_rules(inside, {LAYER + name: w[name] for name in w})
            return {name.removeprefix(start): x for name, x in read.items()}

        def make(mine=mine, layer=layer):
            return getattr(config.pattern[0], mine).make(DIM, layer=layer, rngs=nnx.Rngs(0))

        found[theirs] = whole.filled(make, parameters, below(theirs, w))(x, None, ctx)[0]
    return found
