"""What ``effarch plan`` takes: the config of a run, and what to plan of it."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic
import yaml

from effarch.bench.topology import parse
from effarch.config import Config
from effarch.config.yaml import read
from effarch.experiment.config import PretrainConfig
from effarch.experiment.distill import DistillConfig

What = Literal["train", "prefill", "decode"]
Find = Literal["batch_size", "seq_len"]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the key hides pydantic's old BaseModel.json, which nothing here calls

    class PlanOptions(Config):
        """What is planned of a run, for which machine."""

        target: str = pydantic.Field(
            description="v5e:4x4, v5p:4x4x8, v6e:8x8, h100:8, h200:4x8 (hosts x GPUs), cpu:8; a kind alone: one device"
        )
        what: What = pydantic.Field(
            "train",
            description="the training step, or prefill or decoding with the model (of a distillation, the student)",
        )
        stage: str | None = pydantic.Field(
            None, description="of a distillation, by name or by number from 0; null: each of them"
        )
        find: Find | None = pydantic.Field(None, description="the largest that fits, by bisection")
        memory: float | None = pydantic.Field(None, gt=0, description="GiB that a device has; null: as its vendor says")
        json: str | None = pydantic.Field(None, description="file for the plan as JSON")  # ty: ignore

        @pydantic.field_validator("target")
        @classmethod
        def _is_built(cls, target: str) -> str:
            return parse(target).name


class PlanPretrain(PlanOptions, PretrainConfig):
    """A plan of pretraining."""

    def planned_run(self) -> PretrainConfig:
        """The run."""
        return PretrainConfig(**{name: getattr(self, name) for name in PretrainConfig.model_fields})


class PlanDistill(PlanOptions, DistillConfig):
    """A plan of a distillation."""

    def planned_run(self) -> DistillConfig:
        """The run."""
        return DistillConfig(**{name: getattr(self, name) for name in DistillConfig.model_fields})


def schema_of(path: str | None) -> type[PlanPretrain] | type[PlanDistill]:
    """The schema for a run's file: a distillation's where it speaks of a teacher, a student or stages."""
    try:
        found = read(Path(path or "").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return PlanPretrain  # whoever reads it next says what is wrong
    distills = isinstance(found, Mapping) and not found.keys().isdisjoint(("teacher", "student", "stages"))
    return PlanDistill if distills else PlanPretrain
