"""Whole decoders of transformers for the cases in ``models/``, and how their tensors become our parameters."""


def _model(config):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def shapes(config) -> dict[str, tuple[int, ...]]:
    """The parameters of a config's model; a tied head is none."""
    return {name: tuple(p.shape) for name, p in _model(config).named_parameters()}


def logits(config, weights, tokens):
    """``[B, T, vocab]`` in float32, without a cache."""
    import torch

    model = _model(config)
    own = dict(model.named_parameters())
    assert set(own) == set(weights)
    with torch.no_grad():
        for name, x in weights.items():
            own[name].copy_(torch.tensor(x))
        return model(input_ids=torch.tensor(tokens).long(), use_cache=False).logits.numpy()


def moved(w, ours: str, theirs: str, linears: dict[str, str], others: dict[str, str]) -> dict:
    """Our parameters below the path ``ours`` from their tensors below ``theirs``.

    Args:
      linears: our projection -> their ``nn.Linear``, its bias with it if there is one.
      others: our parameter -> their tensor, as it is.
    """
    found = {f"{ours}.{mine}": w[f"{theirs}.{name}"] for mine, name in others.items()}
    for mine, name in linears.items():
        found[f"{ours}.{mine}.kernel"] = w[f"{theirs}.{name}.weight"].T
        if f"{theirs}.{name}.bias" in w:
            found[f"{ours}.{mine}.bias"] = w[f"{theirs}.{name}.bias"]
    return found


def llama_like(w, layers: int, *, dense: bool = True) -> dict:
    """All but the sequence mixers (and, if not ``dense``, the channel mixers) of a model with Llama's names."""
    found = {
        "embedding.table": w["model.embed_tokens.weight"],
        "norm.weight": w["model.norm.weight"],
        "unembed.kernel": w["lm_head.weight"].T,
    }
    norms = {"mixer_norm.weight": "input_layernorm.weight", "channel_norm.weight": "post_attention_layernorm.weight"}
    mlp = {f"channel.mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")} if dense else {}
    for i in range(layers):
        found |= moved(w, f"layers.{i}", f"model.layers.{i}", mlp, norms)
    return found


ATTENTION = {f"qkv.{name}": f"{name}_proj" for name in "qkvo"}
