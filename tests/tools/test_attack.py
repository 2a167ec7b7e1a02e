"""The attack finds faults that were mended and are put back, and nothing in the house as it is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = re.compile(r"^\| ([a-z ]+) \| (\d+) \| \d+ \| \d+ \| (\d+) \|", re.MULTILINE)

FAULTS = {  # put back before the attack begins; the kinds that have to find it, and as what
    "a message keeps its lines": (
        "import lowbit.cli.program as p; p.one_line = lambda text, most=0: str(text)",
        ["config"],
        "output: ",
    ),
    "pictures are opened by any plugin": (
        "import lowbit.data.picture_file as p; p.FORMATS = None",
        ["picture"],
        "code run: ",
    ),
    "records of an archive are read without a look at their checksums": (
        "import lowbit.checkpoint.read as r; r._check_archive = lambda path: None",
        ["checkpoint bytes"],
        "wrong result: ",
    ),
    "a backbone's checksum is not looked at": (
        "import lowbit.models.weight_file as w; w._check_digest = lambda weights: None",
        ["export bytes"],
        "wrong result: ",
    ),
    "what a checkpoint expands to has no limit": (
        "import lowbit.checkpoint.read as r; r.check_content = lambda content, path: None",
        ["checkpoint content"],
        "hang: computing",
    ),
    "temporary files follow links": (
        "import lowbit.files as f; f._new_file = lambda path: path.open('wb')",
        ["run folder"],
        "file written: ",
    ),
    "FIFOs are opened": (
        "import lowbit.data.picture_file as p; p.open_regular = lambda path: path.open('rb')",
        ["picture"],
        "hang: waiting",
    ),
}


def attack(*arguments: object, fault: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the tool in a process of its own, with a fault put back."""
    program = (
        f"import runpy, sys; sys.argv = {json.dumps(['attack.py', *map(str, arguments)])}; {fault or 'pass'}\n"
        f"runpy.run_path({str(ROOT / 'tools/attack.py')!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.heavy
def test_a_few_inputs_of_each_kind_are_treated_as_promised() -> None:
    done = attack("--seconds", 60, "--seed", 0, "--count", 2)
    rows = {kind: (int(tried), int(broken)) for kind, tried, broken in ROW.findall(done.stdout)}
    assert len(rows) > 10, done.stderr
    assert {kind: broken for kind, (_, broken) in rows.items() if broken} == {}, done.stdout
    assert done.returncode == 0
    assert all(tried == 2 for kind, (tried, _) in rows.items() if kind != "all")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_mended_fault_that_is_put_back_is_found(name: str) -> None:
    fault, kinds, how = FAULTS[name]
    arguments = [word for kind in kinds for word in ("--kind", kind)]
    done = attack("--seconds", 120, *arguments, "--until", how, fault=fault)
    assert how in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
