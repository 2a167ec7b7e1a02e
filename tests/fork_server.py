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


def start(child: Child, request: dict[str, Any], port: int) -> list[int]:
    """Fork the processes of one run; their ids."""
    world, pids = request["world"], []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            for number, name in ((1, "out"), (2, "err")):
                path = f"{request['said']}.{rank}.{name}"
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if world > 1:
                names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
                os.environ.update(zip(names, map(str, (rank, rank, world, world, "127.0.0.1", port)), strict=True))
            code = ended(child, request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    return pids


def main(program: Path) -> None:
    """Serve until stdin ends."""
    sys.path[:0] = str(program.parent), str(Path(__file__).with_name("helpers"))
    child: Child = importlib.import_module(program.stem).child
    torch.set_num_threads(1)
    lowbit.curves.plot_run = lambda folder: None  # it takes seconds, and no test of these runs looks at it
    gc.freeze()  # a collection in a child would copy every page
    port = 20000 + os.getpid() % 20000
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
            print(json.dumps({"codes": codes}), flush=True)
            continue
        port += 1
        print(json.dumps({"pids": start(child, request, port)}), flush=True)
    os._exit(0)  # taking all these modules apart takes 2 s


if __name__ == "__main__":
    main(Path(sys.argv[1]))
