"""Tiny checkpoints of every encoder in transformers' format, and its answers to them; as ``families`` for decoders.

``python -m tests.hub.make_encoders``, with the extra ``oracles``, writes the golden files.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from effarch.hub import write_checkpoint
from tests.hub import families

FOLDER = Path(__file__).parent / "golden"
BATCH, TIME, LAYERS = 3, 11, 2
LENGTHS = (TIME, 7, 4)  # of the rows, padded on the right
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "layer_norm_eps": 0.01,
}
TEXT = {**SMALL, "vocab_size": 48, "type_vocab_size": 3}
BERT = {"model_type": "bert", **TEXT, "max_position_embeddings": 14}
ROBERTA = {"model_type": "roberta", **TEXT, "max_position_embeddings": 16, "pad_token_id": 1}
VIT = {"model_type": "vit", **SMALL, "image_size": [8, 12], "patch_size": 4, "num_channels": 2, "qkv_bias": False}
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}}

CASES: dict[str, dict[str, Any]] = {
    "bert": {**BERT, "architectures": ["BertModel"], "hidden_act": "gelu_new"},
    "bert_masked": {**BERT, "architectures": ["BertForMaskedLM"], "hidden_act": "relu"},
    "bert_classes": {**BERT, "architectures": ["BertForSequenceClassification"], **LABELS},
    "roberta_masked": {**ROBERTA, "architectures": ["RobertaForMaskedLM"], "hidden_act": "gelu_new"},
    "roberta_classes": {**ROBERTA, "architectures": ["RobertaForSequenceClassification"], **LABELS},
    "vit": {**VIT, "architectures": ["ViTModel"], "hidden_act": "gelu_new"},
    "vit_classes": {**VIT, "architectures": ["ViTForImageClassification"], **LABELS},
}


def is_image(name: str) -> bool:
    """Whether a case reads images."""
    return CASES[name]["model_type"] == "vit"


def inputs(name: str) -> dict[str, np.ndarray]:
    """What a case is asked: ours, as :meth:`effarch.models.encoder.Encoder.hidden` takes them."""
    rng = np.random.default_rng(0)
    if is_image(name):
        return {"inputs": rng.normal(size=(BATCH, 8, 12, 2)).astype(np.float32)}
    mask = np.arange(TIME) < np.asarray(LENGTHS)[:, None]
    tokens = np.where(mask, rng.integers(3, 48, (BATCH, TIME)), 1).astype(np.int32)
    return {"inputs": tokens, "mask": mask, "token_types": rng.integers(0, 3, (BATCH, TIME)).astype(np.int32)}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor; queries and keys are larger, so that attention is far from even."""
    scale = 2.5 if any(part in name for part in ("query", "key")) else 1.0
    return np.float32(scale) * families.draw(name, shape)


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a case."""
    return {key: draw(key, shape) for key, shape in shapes.items()}


def stored(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """Names and shapes of the tensors of a case, and its answers."""
    with np.load(FOLDER / f"{name}.npz") as found:
        shapes = {key: tuple(shape) for key, shape in json.loads(str(found["shapes"])).items()}
        return shapes, {key: found[key] for key in found if key != "shapes"}


def make(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """What transformers says now: the input of every layer, the last hidden states, logits or what the pooler gives."""
    import torch
    import transformers
    from safetensors import safe_open

    config = CASES[name]
    cls = getattr(transformers, config["architectures"][0])
    with tempfile.TemporaryDirectory() as where:
        fresh = cls(transformers.AutoConfig.for_model(**json.loads(json.dumps(config))))
        fresh.save_pretrained(Path(where) / "fresh")
        with safe_open(Path(where) / "fresh" / "model.safetensors", "np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        folder = write_checkpoint(Path(where) / "drawn", config, drawn(shapes).items())
        model, said = cls.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"], said
    asked = {key: torch.tensor(value) for key, value in inputs(name).items()}
    with torch.no_grad():
        if is_image(name):
            out = model.eval()(pixel_values=asked["inputs"].permute(0, 3, 1, 2), output_hidden_states=True)
        else:
            texts = {"input_ids": asked["inputs"].long(), "attention_mask": asked["mask"].long()}
            out = model.eval()(**texts, token_type_ids=asked["token_types"].long(), output_hidden_states=True)
        output = out.logits if "logits" in out else out.pooler_output
        answers = {"layers": torch.stack(out.hidden_states[:LAYERS]), "output": output}
        if "last_hidden_state" in out:
            answers["hidden"] = out.last_hidden_state
    return shapes, {key: value.numpy() for key, value in answers.items()}
