"""The platform's own softmax attention: cuDNN's flash attention on NVIDIA GPUs, splash attention on TPUs."""

import jax
import jax.numpy as jnp

from effarch.ops.platform import platform
from effarch.typing import Array, Float


def unavailable(dtype: str) -> str | None:
    """Why there is none here, in words; None where there is."""
    if platform() == "cpu":
        return "the best that a CPU has is softmax, by blocks"
    if platform() != "tpu" and jnp.dtype(dtype).itemsize != 2:
        return f"cuDNN's flash attention takes bfloat16, not {dtype}"
    return None


def platform_attention(
    q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H K"]
) -> Float[Array, "B T H K"]:
    """Causal softmax attention over whole rows, scaled by K^-1/2.

    Raises:
      ValueError: the platform has no kernel for it.
    """
    if reason := unavailable(str(q.dtype)):
        raise ValueError(f"softmax_platform: {reason}")
    if platform() == "tpu":
        return _splash(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _splash(q: Array, k: Array, v: Array) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, time, heads, width = q.shape
    mask = splash.MultiHeadMask([splash.CausalMask((time, time))] * heads)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1)
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q * width**-0.5, k, v))
    return jnp.moveaxis(jax.vmap(kernel)(q, k, v), 2, 1)
