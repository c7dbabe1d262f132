"""Whole mixers in golden cases: one of ours, and a torch module, both with parameters that are given by name."""

import jax
from flax import nnx

from effarch.mixers import Context, LayerInfo


def ours(config, dim, x, parameters, segment_ids=None):
    """The output of a mixer of ours on ``x [B, T, D]``.

    Args:
      parameters: by dotted path ("q.kernel"): all of them, no others.
    """
    graph, state = nnx.split(jax.eval_shape(lambda: config.make(dim, layer=LayerInfo(count=2), rngs=nnx.Rngs(0))))
    left = dict(parameters)

    def given(path, leaf):
        name = ".".join(str(key.key) for key in path if hasattr(key, "key"))
        value = left.pop(name)
        assert value.shape == leaf.shape, (name, value.shape, leaf.shape)
        return value

    state = jax.tree.map_with_path(given, state)
    assert not left, sorted(left)
    ctx, _ = Context.of(*x.shape[:2], segment_ids=segment_ids)
    return nnx.merge(graph, state)(x, None, ctx)[0]


def torchs(module, parameters, *args, **options):
    """The output of a torch module; ``parameters`` by its own names, all of them, no others."""
    import torch

    return torch.func.functional_call(module, parameters, args, options, strict=True)


def heads(kernel, *shape):
    """A torch linear's weight ``[out, in]`` as our kernel ``[in, *shape]``."""
    return kernel.T.reshape(kernel.shape[1], *shape)
