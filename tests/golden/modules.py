"""Our mixers with the weights of independent modules."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from effarch.mixers import Context, LayerInfo, Mixer, MixerConfig


def call(config: MixerConfig, x, load: Callable[[Mixer], None], *, layer: LayerInfo | None = None):
    """``(y, state)`` of a mixer on ``x [B, T, D]`` from no state, after ``load`` has put the weights in."""
    mixer = config.make(x.shape[-1], layer=layer or LayerInfo(), rngs=nnx.Rngs(0))
    load(mixer)
    ctx, _ = Context.of(*x.shape[:2])
    y, state, _ = mixer(x, mixer.init_state(x.shape[0], x.shape[1]), ctx)
    return y, state


def put(target: nnx.Param, weight, *, transpose: bool = False) -> None:
    """Sets a parameter from an array of another shape (torch's Linear holds ``[out, in]``: transpose)."""
    target[...] = jnp.reshape(weight.T if transpose else weight, target.shape)
