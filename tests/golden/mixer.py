"""Whole mixers in golden cases: one of ours, and a torch module, both with parameters that are given by name."""

import jax
from flax import nnx

from effarch.mixers import Context, LayerInfo

LAYER = LayerInfo(count=2)


def ours(config, dim, x, parameters, segment_ids=None, *, layer=LAYER):
    """The output of a mixer of ours on ``x [B, T, D]``.

    Args:
      parameters: by dotted path ("q.kernel"): all of them, no others. layer: where it stands.
    """
    return ours_with_state(config, dim, x, parameters, segment_ids, layer=layer, carry=False)[0]


def ours_with_state(config, dim, x, parameters, segment_ids=None, *, layer=LAYER, carry=True):
    """The output, and the state after the last token (None unless ``carry``), from no token seen."""
    graph, state, fixed = nnx.split(config.make(dim, layer=layer, rngs=nnx.Rngs(0)), nnx.Param, ...)
    left = dict(parameters)

    def given(path, leaf):
        name = ".".join(str(key.key) for key in path if hasattr(key, "key"))
        value = left.pop(name)
        assert value.shape == leaf.shape, (name, value.shape, leaf.shape)
        return value

    state = jax.tree.map_with_path(given, state)
    assert not left, sorted(left)
    ctx, _ = Context.of(*x.shape[:2], segment_ids=segment_ids)
    mixer = nnx.merge(graph, state, fixed)
    return mixer(x, mixer.init_state(*x.shape[:2]) if carry else None, ctx)[:2]


def torchs(module, parameters, *args, **options):
    """The output of a torch module; ``parameters`` by its own names, all of them, no others."""
    import torch

    return torch.func.functional_call(module, parameters, args, options, strict=True)


def heads(kernel, *shape):
    """A torch linear's weight ``[out, in]`` as our kernel ``[in, *shape]``."""
    return kernel.T.reshape(kernel.shape[1], *shape)


def normal(rng, **shapes):
    """Normal weights by torch's names (``__`` for dots), those of linear layers ``[out, in]`` over sqrt(in)."""
    draws = {name.replace("__", "."): rng.normal(size=shape) for name, shape in shapes.items()}
    return {name: x / x.shape[-1] ** 0.5 if x.ndim > 1 else x for name, x in draws.items()}
