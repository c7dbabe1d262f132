"""Tiny checkpoints of every Transformer family, in transformers' format, and its answers to them.

A case is a ``config.json`` in which every field that changes the output has a value of its own. Weights are drawn by
name and shape, so that the golden files hold only names, shapes and logits: ``python -m tests.hub.make_families``, with
the extra ``oracles``, writes them.
"""

import inspect
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden"
BATCH, TIME, FIRST = 2, 40, 23  # FIRST: tokens of the first piece of a text in two, beyond every window
SMALL = {"vocab_size": 48, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
GATED = {**SMALL, "intermediate_size": 40, "num_hidden_layers": 4, "rms_norm_eps": 0.01}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 700.0,
    "factor": 3.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 5.0,
    "low_freq_factor": 1.25,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 20,
}
GEMMA = {
    **GATED,
    "head_dim": 12,
    "hidden_activation": "gelu",
    "attention_bias": True,
    "query_pre_attn_scalar": 20,
    "final_logit_softcapping": 1.5,
    "sliding_window": 7,
}
NEOX = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_eps": 0.01,
}
F, S = "full_attention", "sliding_attention"

CASES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        **GATED,
        "head_dim": 12,
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3,
    },
    "llama_linear": {
        "model_type": "llama",
        **GATED,
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.5},
    },
    "llama_dynamic": {
        "model_type": "llama",
        **GATED,
        "num_hidden_layers": 2,
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 2.5},
    },
    "mistral": {
        "model_type": "mistral",
        **GATED,
        "head_dim": 12,
        "sliding_window": 7,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "qwen2": {
        "model_type": "qwen2",
        **GATED,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 2,
        "rope_parameters": YARN,
    },
    "qwen3": {
        "model_type": "qwen3",
        **GATED,
        "head_dim": 12,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": [F, S, F, S],
        "tie_word_embeddings": True,
        "rope_parameters": {**YARN, "attention_factor": 1.3, "truncate": False},
    },
    "smollm3": {
        "model_type": "smollm3",
        **GATED,
        "attention_bias": True,
        "mlp_bias": True,
        "no_rope_layers": [1, 0, 1, 1],
        "use_sliding_window": True,
        "sliding_window": 6,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "phi3": {
        "model_type": "phi3",
        **GATED,
        "hidden_size": 64,
        "sliding_window": 18,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 25,  # above FIRST: the second piece crosses it
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 300.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
            "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
        },
    },
    "gemma2": {
        "model_type": "gemma2",
        **GEMMA,
        "attn_logit_softcapping": 1.2,
        "layer_types": [F, S, S, F],
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **GEMMA,
        "layer_types": [S, S, F, S],
        "rope_parameters": {
            F: {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.5},
            S: {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 48,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 40,
        "n_positions": 44,
        "activation_function": "gelu",
        "layer_norm_epsilon": 0.01,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        **NEOX,
        "hidden_act": "gelu_new",
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    },
    "gpt_neox_serial": {
        "model_type": "gpt_neox",
        **NEOX,
        "hidden_act": "relu",
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "partial_rotary_factor": 0.5, "factor": 2.0},
    },
}

#: The same models in the spelling of older files: what is taken away, and what stands in its place.
OLDER: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "llama": (
        ("rope_parameters",),
        {"rope_theta": 500.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    ),
    "llama_linear": (("rope_parameters",), {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 2.5}}),
    "llama_dynamic": (("rope_parameters",), {"rope_theta": 300.0, "rope_scaling": {"type": "dynamic", "factor": 2.5}}),
    "mistral": (("rope_parameters",), {"rope_theta": 300.0, "rope_scaling": None}),
    "qwen2": (
        ("rope_parameters", "layer_types"),
        {
            "rope_theta": 700.0,
            "rope_scaling": {"type": "yarn", **{k: v for k, v in YARN.items() if k not in ("rope_type", "rope_theta")}},
        },
    ),
    "smollm3": (("rope_parameters", "layer_types"), {"rope_theta": 300.0, "rope_scaling": None}),
    "gemma2": (("rope_parameters",), {"rope_theta": 300.0, "cache_implementation": "hybrid", "hidden_act": "gelu"}),
    "gemma3": (
        ("rope_parameters",),
        {
            "rope_theta": 700.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.5},
            "sliding_window_pattern": 3,
        },
    ),
    "gpt_neox": (("rope_parameters",), {"rotary_emb_base": 300, "rotary_pct": 0.5}),
    "phi3": (
        ("rope_parameters",),
        {
            "rope_theta": 300.0,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "su",
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
            },
        },
    ),
}


def older(name: str) -> dict[str, Any]:
    """The case in the older spelling."""
    gone, instead = OLDER[name]
    return {key: value for key, value in CASES[name].items() if key not in gone} | instead


def tokens(name: str) -> np.ndarray:
    """``[B, T]`` random ids."""
    return np.random.default_rng(7).integers(0, CASES[name]["vocab_size"], (BATCH, TIME), dtype=np.int32)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor: matrices of variance 1 / inputs, those of q and k larger; vectors about 1/2, of either sign."""
    x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) < 2:
        return (0.5 + 0.4 * x).astype(np.float32)
    inputs = shape[0] if name.endswith(_CONV1D) else shape[1]
    large = 2.5 if any(part in name for part in ("q_proj", "k_proj", "qkv", "c_attn", "query_key_value")) else 1.0
    return (large * x * inputs**-0.5).astype(np.float32)


_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def torch_model(config: dict[str, Any], *, attention: str = "eager"):
    """transformers' model of a config, its weights drawn."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # the defaults are beyond so small a vocabulary
    of = AutoConfig.for_model(**json.loads(json.dumps(config)), **ids)
    model = AutoModelForCausalLM.from_config(of, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(draw(name, tuple(parameter.shape))))
    return model


def torch_logits(model, ids: np.ndarray, pieces: tuple[int, ...] | None = None) -> np.ndarray:
    """Logits ``[B, T, vocab]``; of a text in pieces, each goes on with the cache of those before."""
    import torch

    carried = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    x, cache, found, start = torch.tensor(ids).long(), None, [], 0
    with torch.no_grad():
        for length in pieces or (ids.shape[1],):
            piece = x[:, start : start + length]
            out = model(input_ids=piece, use_cache=pieces is not None, **{carried: cache})
            cache, start = getattr(out, carried, out.past_key_values), start + length
            found.append(out.logits)
    return torch.cat(found, dim=1).numpy()


def stored(name: str) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """Names and shapes of the tensors of a case, and its logits."""
    with np.load(FOLDER / f"{name}.npz") as found:
        return {key: tuple(shape) for key, shape in json.loads(str(found["shapes"])).items()}, found["logits"]


def make(name: str) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """What transformers says now."""
    model = torch_model(CASES[name])
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    return shapes, torch_logits(model, tokens(name))
