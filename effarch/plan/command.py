"""``effarch plan``: compiles, shows progress, prints the plan and writes it as JSON."""

import json
import sys
from pathlib import Path

from effarch.config import UserError
from effarch.plan.config import PlanDistill, PlanPretrain
from effarch.plan.report import text
from effarch.plan.run import plan

_OPTIONS = ("what", "stage", "find", "memory")


def command(config: PlanPretrain | PlanDistill) -> int:
    """Plans a run; exit code 0 whether or not it fits, for both are answers."""
    from rich.console import Console

    if config.json is not None and not Path(config.json).parent.is_dir():
        raise UserError(f"json: expected a file in a folder that exists, got {config.json}")
    options = {name: getattr(config, name) for name in _OPTIONS}

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = plan(config.planned_run(), config.target, **options, tell=tell)
    console = Console()
    print(text(found, console.width if console.is_terminal else None))
    if config.json is not None:
        Path(config.json).write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")
    return 0
