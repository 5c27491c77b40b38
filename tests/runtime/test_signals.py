"""The first signal asks for a stop, which waits for a safe point; a second one, later, quits at once."""

import signal
import subprocess
import sys

import pytest

from comp.runtime import signals
from comp.runtime.errors import Interrupted

TWO_SIGNALS = """
import os, signal, sys, time
from comp.runtime import signals
with signals.catch_stop_signals():
    for pause in (float(sys.argv[1]), 0):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(pause)
    signals.raise_if_interrupted()
"""


def test_a_signal_stops_at_the_next_safe_point() -> None:
    with signals.catch_stop_signals():
        signals.raise_if_interrupted()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as stop:
            signals.raise_if_interrupted()
    assert stop.value.exit_code == 143


@pytest.mark.parametrize(("pause", "code"), [(0.6, -signal.SIGTERM), (0.0, 1)])
def test_a_second_signal_quits_at_once_unless_it_is_the_first_sent_twice_as_timeout_does(
    pause: float, code: int
) -> None:
    ended = subprocess.run([sys.executable, "-c", TWO_SIGNALS, str(pause)], capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert ("Interrupted" in ended.stderr) == (code == 1)
    assert ended.stderr.count("stopping at the next safe point") == 1
