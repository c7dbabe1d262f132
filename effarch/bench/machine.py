"""Where and with what a report was made."""

import os
import platform
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import effarch


def commit() -> str:
    """The commit of this package's checkout, "+" behind it where files differ; "" outside of one."""
    root = Path(effarch.__file__).parent.parent

    def git(*words: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    if not (root / ".git").exists() or not (found := git("rev-parse", "--short=10", "HEAD")):
        return ""
    return found + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", "effarch") else "")


def processor() -> str:
    """The processor's name as its vendor spells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(command: str) -> dict[str, Any]:
    """Hardware, versions, commit, command and date."""
    from effarch.training.run import versions

    return {
        "processor": processor(),
        "cores": cores(),
        **versions(),
        "commit": commit(),
        "command": command,
        "date": datetime.now().date().isoformat(),
    }


SAME = ("processor", "cores", "devices", "platform", "jax", "jaxlib", "python", "commit")  # or rows do not compare
