"""The whole MoBA mixer on packed rows: flash-linear-attention's layer, without the norm on its heads' outputs.

Its choice of blocks and its mixing of softmaxes are its own; FlashAttention is in torch. It packs the rows of a batch
into one itself.
"""

import warnings

from effarch.mixers.moba import MoBA
from tests.golden import fla_sparse, mixer
from tests.golden.mixer import heads, normal, torchs

D, H, K, SIZE, TOP = 16, 2, 8, 6, 3


def inputs(rng):
    weights = normal(rng, **{f"{name}_proj__weight": (D, D) for name in "qkvo"})
    return {"x": 2 * rng.normal(size=(2, 45, D)), **weights}


def independent(x, **weights):
    layer = fla_sparse.mixture_of_block_attention(hidden_size=D, num_heads=H, moba_chunk_size=SIZE, moba_topk=TOP)
    with warnings.catch_warnings(action="ignore"):  # torch calls its index_reduce a beta
        return {"y": torchs(layer, weights, x)[0]}


def ours(x, **w):
    parameters = {f"qkv.{name}.kernel": heads(w[f"{name}_proj.weight"], H, K) for name in "qkv"}
    parameters["qkv.o.kernel"] = w["o_proj.weight"].T.reshape(H, K, D)
    config = MoBA(num_heads=H, num_kv_heads=H, head_dim=K, block_size=SIZE, top_k=TOP)
    return {"y": mixer.ours(config, D, x, parameters)}
