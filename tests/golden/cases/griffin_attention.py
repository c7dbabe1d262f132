"""Griffin's local attention, one key head, half of each head rotated, a bias behind: transformers, RecurrentGemma."""

from flax import nnx

from effarch.mixers import Context, LayerInfo
from effarch.mixers.sliding_window import SlidingWindow

TIME, DIM, HEADS, WIDTH, WINDOW = 24, 32, 4, 8, 7
CONFIG = SlidingWindow(
    num_heads=HEADS, num_kv_heads=1, head_dim=WIDTH, rope_fraction=0.5, out_bias=True, window=WINDOW, sinks=0
)


def inputs(rng):
    return {"x": rng.normal(size=(2, TIME, DIM))}


def weights(rng):
    rows = {"q_proj": HEADS * WIDTH, "k_proj": WIDTH, "v_proj": WIDTH, "o_proj": DIM}
    found = {f"{name}_weight": rng.normal(size=(n, DIM)) * DIM**-0.5 for name, n in rows.items()}
    return found | {"o_proj_bias": 0.3 * rng.normal(size=DIM)}


def independent(x, **weights):
    import torch
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaAttention

    config = RecurrentGemmaConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=WIDTH,
        attention_window_size=WINDOW,
        attn_implementation="eager",
    )
    module = RecurrentGemmaAttention(config, 2)
    at = torch.arange(TIME)
    distance = at[:, None] - at[None, :]
    mask = torch.where((distance >= 0) & (distance < WINDOW), 0.0, -torch.inf)[None, None]
    parameters = {"_".join(key.split("_")[:2]) + "." + key.split("_")[2]: weight for key, weight in weights.items()}
    return {"y": torch.func.functional_call(module, parameters, (x, at[None], mask))[0]}


def ours(x, **weights):
    mixer = CONFIG.make(DIM, layer=LayerInfo(), rngs=nnx.Rngs(0))
    for name, linear in (("q", mixer.qkv.q), ("k", mixer.qkv.k), ("v", mixer.qkv.v), ("o", mixer.qkv.o)):
        linear.kernel[...] = weights[f"{name}_proj_weight"].T.reshape(linear.kernel.shape)
    mixer.qkv.o.bias[...] = weights["o_proj_bias"]
    return {"y": mixer(x, None, Context.of(2, TIME)[0])[0]}
