"""A training process, for tests that kill it: ``python -m tests.training.toy_process FOLDER STEPS EVERY``."""

import functools
import sys
from pathlib import Path

from tests.training import toy

if __name__ == "__main__":
    say = functools.partial(print, flush=True)
    say("digest", toy.train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), report=say))
