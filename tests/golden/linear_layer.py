"""Projections and heads of the linear-attention layers that golden cases share; weights as torch holds them."""

import jax.numpy as jnp
from flax import nnx

from effarch.mixers import Context, LayerInfo
from tests.golden import draw

DIM = 16


def inputs(rng):
    """``x``."""
    return {"x": rng.normal(size=(draw.BATCH, draw.TIME, DIM))}


def weights(rng, width: int = draw.WIDTH):
    """Projections ``[out, in]``; queries and keys have heads of ``width``."""
    out = {"q": draw.HEADS * width, "k": draw.HEADS * width, "v": draw.HEADS * draw.VALUE}
    found = {f"{name}_proj": rng.normal(size=(n, DIM)) * DIM**-0.5 for name, n in out.items()}
    return {**found, "o_proj": rng.normal(size=(DIM, out["v"])) * out["v"] ** -0.5}


def run_theirs(x, maps, projections):
    """A layer of flash-linear-attention, composed of its feature maps and its naive normalised op."""
    from tests.golden.independent import naive

    q, k, v = ((x @ projections[f"{name}_proj"].T).unflatten(-1, (draw.HEADS, -1)) for name in "qkv")
    q, k = (phi(y) for phi, y in zip(maps, (q, k), strict=True))
    o, _ = naive("linear_attn/naive").naive_recurrent_linear_attn(q, k, v, normalize=True)
    return {"y": o.flatten(-2) @ projections["o_proj"].T}


def mixer(config, projections):
    """Our mixer with these projections."""
    made = config.make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(0))
    for name in "qkv":
        linear = getattr(made.qkv, name)
        linear.kernel[...] = projections[f"{name}_proj"].T.reshape(linear.kernel.shape)
    made.qkv.o.kernel[...] = projections["o_proj"].T.reshape(made.qkv.o.kernel.shape)
    return made


def run_ours(made, x):
    """Its outputs."""
    return {"y": made(x, None, Context.of(*x.shape[:2])[0])[0]}


def sizes(width: int = draw.WIDTH):
    """Fields of our config."""
    return {"num_heads": draw.HEADS, "head_dim": width, "value_head_dim": draw.VALUE}


def per_head(matrix):
    """A weight ``[out, in]`` that torch shares among heads, as our ``[H, in, out]``."""
    return jnp.broadcast_to(matrix.T[None], (draw.HEADS, *matrix.T.shape))
