"""Runs so small that compiling is all they cost."""

from effarch.config import load
from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig

ATTENTION = {"type": "softmax_attention", "num_heads": 2, "num_kv_heads": 2, "head_dim": 16}
RETNET = {"type": "retnet", "num_heads": 2, "head_dim": 16, "value_head_dim": 16}
SHARED = ["batch_size=8", "seq_len=32", "mesh={data: 2, fsdp: 4}"]


def model(mixer: dict, layers: int = 1) -> str:
    """In YAML."""
    block = {"mixer": mixer, "channel": {"type": "swiglu", "hidden": 64}}
    return str({"vocab_size": 264, "dim": 32, "num_layers": layers, "pattern": [block]})


def pretrain(*more: str) -> PretrainConfig:
    """264 rows of 32, a layer of RetNet: every matrix divides over the four devices of ``fsdp``."""
    return load(PretrainConfig, None, [*SHARED, f"model={model(RETNET)}", *more])


def distill(*more: str) -> DistillConfig:
    """The same student, of a softmax teacher."""
    stages = "stages=[{type: align, steps: 2}, {type: logits, steps: 2}]"
    return load(
        DistillConfig, None, [*SHARED, f"teacher.model={model(ATTENTION)}", "student.mixer=retnet", stages, *more]
    )
