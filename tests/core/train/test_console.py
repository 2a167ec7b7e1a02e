"""The record goes to stdout, and a stdout that is closed, full or gone ends the record, not the run."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit.train import console

PROGRAM = """
import logging, sys
from lowbit.train import console
console.configure_logging("toy")
for number in range(2000):
    console.say(f"line {number} " + "x" * 100, "and another")
    logging.getLogger("toy").info("still here %d", number) if number % 1000 == 0 else None
open(sys.argv[1], "w").write("done")
"""


def run(tmp_path: Path, stdout: int, **more: object) -> tuple[int, str]:
    done = tmp_path / "done"
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(done)], stdout=stdout, stderr=subprocess.PIPE, text=True, **more
    )
    assert done.read_text() == "done"
    return process.returncode, process.stderr


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code, said = run(tmp_path, write)
    assert code == 0
    assert said.splitlines() == [
        "stdout cannot be written to ([Errno 32] Broken pipe): the record ends here, the run goes on",
        "still here 0",
        "still here 1000",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has it")
def test_a_full_device(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        code, said = run(tmp_path, full.fileno())
    assert code == 0 and said.count("No space left on device") == 1 and "Traceback" not in said


def test_a_closed_stdout(tmp_path: Path) -> None:
    code, said = run(tmp_path, subprocess.DEVNULL, preexec_fn=lambda: os.close(1))
    assert code == 0 and "Traceback" not in said and "still here 1000" in said


def test_signs_that_a_stream_lacks_cost_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    console.say("St\xf6rche 51 %", "a name that is no text: \udcff")
    console.say("the next")
    assert written.getvalue().decode("ascii") == "St\\xf6rche 51 %\na name that is no text: \\udcff\nthe next\n"


def test_lines_of_torch_do_not_pass_through() -> None:
    script = """
from lowbit.train import console
console.configure_logging("toy")
console.checked()
import logging, torch, warnings
logging.getLogger("torch.somewhere").warning("torch remarks")
warnings.warn("a warning")
torch.std(torch.ones(1))  # a warning of its own
logging.getLogger("toy").info("ours")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "ours\n" and done.stdout == ""


def test_a_stderr_that_is_gone_costs_the_lines_alone(tmp_path: Path) -> None:
    script = PROGRAM.replace("for number", "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\nfor number")
    done = tmp_path / "done"
    process = subprocess.run([sys.executable, "-c", script, str(done)], stdout=subprocess.PIPE, text=True)
    assert done.read_text() == "done" and process.stdout.count("line") == 2000
