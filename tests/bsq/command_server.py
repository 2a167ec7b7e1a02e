"""Imports all that a command needs once and forks every command line: a program for tests, told by JSON lines on stdin.

Request: {"args": [...], "said": PATH, "world": N}: `bsq ARGS` as N processes that find each other as under torchrun,
what they say in PATH.RANK.out and PATH.RANK.err; with "kill": [PLACE, DONE] each kills itself there (`killing.arm`).
Answer: {"pids": [...]}; then {"wait": pids} is answered by {"codes": [...]}. Importing costs 5 s of CPU a process,
which `python -m bsq` and torchrun pay, in a test of each.
"""

import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from killing import arm

from bsq.cli import main as bsq_main

MODULES = ("torch._dynamo", "bsq.train", "bsq.prune", "bsq.finetune")  # the first optimizer imports torch._dynamo


def child(args: Sequence[str], said: str, rank: int, world: int, port: int) -> int:
    """One process of one command; returns its exit code."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if world > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        os.environ.update(zip(names, map(str, (rank, rank, world, "127.0.0.1", port)), strict=True))
    sys.argv = ["bsq", *args]
    try:
        bsq_main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(request: dict[str, Any], port: int) -> list[int]:
    """Fork the processes of one command; their ids."""
    world, pids = request.get("world", 1), []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            if request.get("kill"):
                arm(*request["kill"])
            code = child(request["args"], request["said"], rank, world, port)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    return pids


def main() -> None:
    """Serve until stdin ends."""
    for name in MODULES:
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.freeze()  # collections of a child would copy every page
    port = 20000 + os.getpid() % 20000
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
            print(json.dumps({"codes": codes}), flush=True)
            continue
        port += 1
        print(json.dumps({"pids": start(request, port)}), flush=True)
    os._exit(0)  # taking all these modules apart takes 2 s


if __name__ == "__main__":
    main()
