"""How a forked command line kills itself at one moment of bit training (forked_bsq.py); not a test itself."""

import os
import signal
from typing import Any

import bsq.objective
from bsq.commands import requantised
from bsq.commands.requantised import RequantisedStates
from bsq.objective import BitSparsity


def arm(place: str, done: int) -> None:
    """Kill this process, with no chance to clean up, at a place of the re-quantisation (or batch) that `done` names.

    Places, in their order: "batch" (a batch was trained), "epoch" and "end" (the hook begins), "before" (the net was
    evaluated), "rounded" (planes are binary again, none is dropped yet), "after" (evaluated and said), "kept" (the
    state is written, `model_best` not yet), "done" (both are, the run's checkpoint is still the one before).
    """
    now = -1

    def die(here: str, at: int) -> None:
        if here == place and at == done:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(kind: Any, name: str, here: str, ahead: int = 0) -> None:
        original = getattr(kind, name)

        def instead(self: Any, clock: Any, *args: Any) -> Any:
            nonlocal now
            now = clock.done
            die(here, clock.done + ahead)
            return original(self, clock, *args)

        setattr(kind, name, instead)

    def evaluate(self: RequantisedStates, clock: Any, net: Any, when: Any) -> Any:
        values = call(self, clock, net, when)
        die({"before": "before", "after": "done"}[when], clock.done)
        return values

    def keep(self: RequantisedStates, *args: Any) -> None:
        die("after", now)
        kept(self, *args)

    def prune(*args: Any) -> Any:
        die("rounded", now)
        return drop(*args)

    def write(path: Any, *args: Any, **options: Any) -> None:
        if path.name == "model_best.pth.tar":
            die("kept", now)
        save(path, *args, **options)

    call, kept, drop, save = (
        RequantisedStates.__call__,
        RequantisedStates._keep,
        bsq.objective.prune_,
        requantised.write_checkpoint,
    )
    RequantisedStates.__call__, RequantisedStates._keep = evaluate, keep  # type: ignore[method-assign, assignment]
    bsq.objective.prune_, requantised.write_checkpoint = prune, write  # type: ignore[assignment]
    hook(BitSparsity, "begin_epoch", "epoch")
    hook(BitSparsity, "end_stage", "end")
    hook(BitSparsity, "after_batch", "batch", ahead=1)
