"""A schema with everything a config can have: choices, nested configs, lists of them, optional keys."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from effarch.config import Config
from effarch.registry import Choice, register


@register("maple", kind="tree")
class Maple(Config):
    height: int = Field(8, gt=0, description="metres")
    sap: float = 16.0

    @pydantic.model_validator(mode="after")
    def _even(self):
        if self.height % 2:
            raise ValueError(f"height: expected an even number, got {self.height}")
        return self


@register("oak", kind="tree")
class Oak(Config):
    height: int = Field(4, gt=0)
    acorns: float = Field(0.5, gt=0, lt=1)


class Garden(Config):
    tree: Annotated[Config, Choice("tree")] = Field(Maple(height=2), description="what grows")
    paths: int = 2


class Stage(Config):
    kind: Literal["dig", "sow"]
    steps: int = Field(10, ge=1, description="strokes of the spade")


class Root(Config):
    run_name: str = "run"
    title: str | None = None
    batch_size: int = Field(8, gt=0, description="global batch size (sequences)")
    lr: float = 1e-3
    garden: Garden = Garden(paths=5)
    spare: Garden | None = None
    hedge: Annotated[Config, Choice("tree")] | None = Field("oak")
    rows: tuple[Annotated[Config, Choice("tree")], ...] = ()
    stages: tuple[Stage, ...] = (Stage(kind="dig"), Stage(kind="sow", steps=3))
    folder: Path | None = None
    eos: int | None = Field(None, ge=0)
    names: tuple[str, ...] = ()
    remat: bool = True


class Needy(Config):
    """A config with a key that has no default."""

    size: int = Field(gt=0)
    word: str = "x"
