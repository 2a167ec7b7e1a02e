"""Imports what a test folder's runs need once, and forks every run: told by JSON lines on stdin; not a test itself.

Usage: fork_server.py PROGRAM, whose `child(request)` does what one process has to do, returning its exit code or None.
Request: {"said": PATH, "world": N, ...}: N forks that find each other as under torchrun; what they say goes to
PATH.RANK.out and PATH.RANK.err. Answer: {"pids": [...]}; then {"wait": pids} is answered by {"codes": [...]}.
Importing costs 5 s of CPU a process, which `python -m` and torchrun pay, in a test of each.
"""

import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it: 2 s that every run would spend
from ranks import fork_ranks

import lowbit.curves

Child = Callable[[dict[str, Any]], int | None]


def ended(child: Child, request: dict[str, Any]) -> int:
    """The exit code of one process."""
    try:
        return child(request) or 0
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def start(child: Child, request: dict[str, Any]) -> list[int]:
    """Fork the processes of one run; their ids."""

    def work(rank: int) -> int:
        for number, name in ((1, "out"), (2, "err")):
            path = f"{request['said']}.{rank}.{name}"
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = ended(child, request)
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    return fork_ranks(request["world"], work)


def main(program: Path) -> None:
    """Serve until stdin ends."""
    sys.path.insert(0, str(program.parent))
    child: Child = importlib.import_module(program.stem).child
    torch.set_num_threads(1)
    lowbit.curves.plot_run = lambda folder: None  # it takes seconds, and no test of these runs looks at it
    gc.freeze()  # a collection in a child would copy every page
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
            print(json.dumps({"codes": codes}), flush=True)
            continue
        print(json.dumps({"pids": start(child, request)}), flush=True)
    os._exit(0)  # taking all these modules apart takes 2 s


if __name__ == "__main__":
    main(Path(sys.argv[1]))
