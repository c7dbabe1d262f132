"""Synthetic tasks, one file each: what a small model can learn tells mixers apart in minutes."""

from typing import Annotated

from effarch.data.synthetic.task import Task, batch
from effarch.registry import Choice, discover

__all__ = ["Task", "TaskChoice", "batch"]

TaskChoice = Annotated[Task, Choice("task")]

discover(__name__)
