"""Runs compiled for machines that are not here: what fits, what it would take. ``plan(config, target="v5e:4x4")``."""

from effarch.plan.outcome import Plan, StepPlan
from effarch.plan.run import plan

__all__ = ["Plan", "StepPlan", "plan"]
