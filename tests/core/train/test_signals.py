"""Signals become a flag, without torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEFAULTS = """
import signal
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may have ignored them
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
PROGRAM = """
import sys, time
from lowbit.train import signals
signals.install()
assert "torch" not in sys.modules and "numpy" not in sys.modules
print("ready", flush=True)
for _ in range(400):
    if signals.stop_requested():
        break
    time.sleep(0.05)
print("asked" if signals.stop_requested() else "never", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_torch_is_not_imported(number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", DEFAULTS + PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.send_signal(number)
    assert process.communicate()[0] == "asked\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_at_the_start_stays_so(number: signal.Signals) -> None:
    """`nohup` ignores SIGHUP, a shell's background job SIGINT."""
    start = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n"
    process = subprocess.Popen([sys.executable, "-c", DEFAULTS + start + PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == "asked\n"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize(("launched", "said"), [(True, "asked"), (False, "")])
def test_a_launcher_that_dies_is_noticed(tmp_path: Path, launched: bool, said: str) -> None:
    """Without a launcher the parent is a shell, whose end must not stop the run."""
    output, child = tmp_path / "output", [sys.executable, "-c", DEFAULTS + PROGRAM]
    parent = (
        "import subprocess, sys, time\n"
        f"process = subprocess.Popen({child!r}, stdout=open({str(output)!r}, 'w'))\n"
        "print(process.pid, flush=True)\ntime.sleep(60)\n"
    )
    names = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")
    environment = {k: v for k, v in os.environ.items() if k not in names} | ({"LOCAL_RANK": "0"} if launched else {})
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    until(output, "ready")
    process.kill()
    process.communicate()
    if launched:
        until(output, said)
    else:
        time.sleep(0.5)
        assert output.read_text() == "ready\n"
        os.kill(orphan, signal.SIGKILL)


def until(output: Path, word: str) -> None:
    for _ in range(200):
        if output.exists() and word in output.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{word} was not said in 10 s")
