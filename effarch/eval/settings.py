"""What the folder of a run says of its data and its teacher, as ``config.yaml`` has it."""

from pathlib import Path
from typing import Any

import pydantic
import yaml

from effarch.config import UserError
from effarch.config.yaml import read
from effarch.data.prepare import DataConfig


def settings_of(file: Path) -> dict[str, Any]:
    """The keys of a config file.

    Raises:
      UserError: there is none, or it is no mapping.
    """
    try:
        found = read(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: expected the folder of a run or its config, cannot read it") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected a mapping of keys to values")
    return found


def data_of(file: Path, settings: dict[str, Any]) -> DataConfig:
    """What the run was trained on.

    Raises:
      UserError: what this version does not read.
    """
    try:
        return DataConfig.model_validate(settings.get("data") or {})
    except pydantic.ValidationError as error:
        raise UserError(f"{file}: data: {error.errors(include_url=False)[0]['msg']}") from None


def teacher_of(folder: Path, settings: dict[str, Any]) -> Path:
    """Where the config of a distillation says; beside the run where it says nothing."""
    named = (settings.get("teacher") or {}).get("path")
    return Path(named) if named else folder.parent / "teacher"
