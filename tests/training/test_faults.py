import os
import signal
import subprocess
import sys
import time

import pytest

from effarch.config import UserError
from effarch.training.faults import NonFinite, StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_is_noted(number, code):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.requested and stop.exit_code == code
    assert signal.getsignal(number) is before


def test_second_signal_kills():
    code = (
        "import time\nfrom effarch.training.faults import StopSignal\n"
        "with StopSignal() as stop:\n    print('ready', flush=True)\n    while True:\n"
        "        time.sleep(0.01)\n        stop.requested and print('noted', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "noted\n"
    time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_only_consecutive_skips_end_the_run():
    guard = NonFinite(limit=3)
    for step, skipped in enumerate([1, 1, 0, 1, 1, 0]):
        guard.update(step, skipped)
    guard.update(6, 1)
    guard.update(7, 1)
    with pytest.raises(UserError, match="step 8: loss or gradient not finite in 3 steps in a row"):
        guard.update(8, 1)
