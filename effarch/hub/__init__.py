"""Hugging Face checkpoints in and out: safetensors only, everything checked before anything is loaded."""

from effarch.hub.encoders import load_encoder, read_encoder_config
from effarch.hub.export import export_encoder, export_lm
from effarch.hub.load import load_lm, read_lm_config
from effarch.hub.write import save_lm, write_checkpoint

__all__ = [
    "export_encoder",
    "export_lm",
    "load_encoder",
    "load_lm",
    "read_encoder_config",
    "read_lm_config",
    "save_lm",
    "write_checkpoint",
]
