"""What several processes do together, and the one `Accelerator` of a run.

Accelerate keeps devices, the process group, autocast, the scaler and trackers. It prepares no model, optimizer, loader
or scheduler (see `lowbit.train.engine`): its environment variables for compilation and accumulation do nothing here.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from lowbit.errors import InputError, Stopped
from lowbit.train import console, signals

ASK_EVERY = 10  # items between two questions whether to stop, where several processes have to agree
T = TypeVar("T")

log = logging.getLogger(__name__)

_chosen_here = False  # accelerate's precision is that of a run of ours


def has_gpu() -> bool:
    """Whether runs compute on a GPU."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return kind is not None and kind.type != "mps"


def local_processes() -> int:
    """Processes of this machine, as their launcher says (torchrun and accelerate do)."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def make_accelerator(
    mixed_precision: str | None = None, trackers: Sequence[str] = (), folder: Path | None = None, *, cpu: bool = False
) -> Accelerator:
    """Build the run's accelerator.

    Args:
        mixed_precision: "no", "bf16" or "fp16"; None takes accelerate's environment.
        trackers: names that accelerate knows ("tensorboard", "wandb", ...), writing to `folder`.
        folder: where trackers write.
        cpu: stay on the CPU though there is a GPU. Apple's GPU is not used: it has no double precision.

    Raises:
        InputError: fp16 on the CPU (it would silently run in float32), an unknown or missing tracker, another precision
            than that of an accelerator that the program made itself.
    """
    wanted = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    allowed = ("no", "bf16", "fp16")
    if wanted not in allowed:
        raise InputError(f"--mixed-precision {wanted} is not known: choose one of {', '.join(allowed)}")
    if trackers and folder is None:
        raise InputError("--tracker needs a folder to write to: give --output")
    _choose_precision(wanted)
    cpu = cpu or not has_gpu()  # untold, accelerate leaves CPU ranks that torchrun started alone, each its own run
    torch.backends.cudnn.deterministic = True  # else a resumed run on a GPU would differ from an unbroken one
    try:
        accelerator = Accelerator(
            mixed_precision=wanted,
            cpu=cpu,
            log_with=list(trackers) or None,
            project_dir=folder and str(folder),
        )
    except ValueError as error:  # an unknown tracker
        raise InputError(f"--tracker {' '.join(trackers)}: {error}") from error
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise InputError(
            f"{started} processes were started (WORLD_SIZE) and {accelerator.num_processes} found each other: start "
            "them with torchrun or accelerate launch"
        )
    missing = len(set(trackers)) - len(accelerator.log_with)
    if missing:
        raise InputError(f"--tracker {' '.join(trackers)}: not installed here; install it or leave it out")
    check_precision(accelerator)
    return accelerator


def precision_here() -> str | None:
    """The one precision that accelerate has in this process; None: no accelerator was made."""
    return AcceleratorState._shared_state.get("_mixed_precision")


def _choose_precision(wanted: str) -> None:
    """Let a run have another precision than the one before it in this process, which is over."""
    global _chosen_here
    held = precision_here()
    if held is None:
        _chosen_here = True
    elif held != wanted and _chosen_here:
        AcceleratorState._reset_state()
    elif held != wanted:
        raise InputError(
            f"--mixed-precision {wanted}: an Accelerator of this program has {held}, which is one for all: give "
            f"--mixed-precision {held}, or start another process"
        )


def check_precision(accelerator: Accelerator) -> None:
    """Refuse fp16 on the CPU, where accelerate would silently run float32."""
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("--mixed-precision fp16 needs a GPU and this run is on the CPU: take bf16 or no")


def start_trackers(accelerator: Accelerator, project: str, config: Mapping[str, Any]) -> None:
    """Open the trackers with the resolved options; values that a tracker's table cannot hold become JSON text."""
    plain = {k: v if isinstance(v, int | float | str | bool) else json.dumps(v, default=str) for k, v in config.items()}
    accelerator.init_trackers(project, config=plain)


def on_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Run `action` on the first process alone; if it raises `InputError`, every process raises it.

    Also a barrier: no process leaves before the first one is done.
    """
    message: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except InputError as error:
            if accelerator.num_processes == 1:
                raise
            message = [str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(message)
        if message[0] is not None:
            raise InputError(message[0])


def first_to_say(message: str) -> bool:
    """Whether no other process of the run has said this before: what all find wrong is said once.

    Not a collective, since others may be elsewhere: it asks the store through which the processes found each other.
    Where there is none, or its process has left, the answer is yes.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return True
    key = f"lowbit said {hashlib.blake2b(message.encode(), digest_size=16).hexdigest()}"
    try:
        return int(torch.distributed.distributed_c10d._get_default_store().add(key, 1)) == 1
    except (RuntimeError, AttributeError, ValueError):
        return True


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values; also of channels-last tensors, which collectives refuse."""
    for tensor in tensors:
        plain = tensor.detach().contiguous()
        torch.distributed.broadcast(plain, src=0)
        tensor.detach().copy_(plain)


@contextmanager
def first_ones_buffers(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """On every process the buffers of the first one, whose net is the one that is saved; then its own ones again.

    Batch norm that is not synchronised keeps other statistics on each: without this a set that the processes share
    would be evaluated by several nets.
    """
    if accelerator.num_processes == 1:
        yield
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    own = [buffer.clone() for buffer in buffers]
    broadcast_(buffers)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, mine in zip(buffers, own, strict=True):
                buffer.copy_(mine)


def stop_agreed(accelerator: Accelerator) -> bool:
    """Whether any process was told to stop; the same answer on all of them (0.3 ms on several, nothing on one)."""
    mine = signals.stop_requested()
    if accelerator.num_processes == 1:
        return mine
    flag = torch.tensor([int(mine)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


def until_stopped(
    items: Iterable[T], accelerator: Accelerator, what: str = "evaluation", total: int | None = None
) -> Iterator[T]:
    """The items, as many on every process, with a look at the stop signals between them; counted on a terminal.

    Args:
        items: of a loop, usually batches.
        accelerator: of the run.
        what: the loop does.
        total: number of the items, where they do not say it.

    Raises:
        Stopped: a signal came, to any process; it says that `what` was interrupted.
    """
    ask_every = 1 if accelerator.num_processes == 1 else ASK_EVERY
    total = len(items) if isinstance(items, Sized) else total
    for number, item in enumerate(console.counted(items, what, total)):
        if number % ask_every == 0 and stop_agreed(accelerator):
            raise Stopped(f"{what} was interrupted; its figures are lost")
        yield item


def finish(accelerator: Accelerator) -> None:
    """Wait for all, then close trackers and the process group: the last call of a program that is done or `Stopped`.

    Not after an error, which may be one process's own: the others would be waited for in vain.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held so far: on the accelerator, else in all; 0 where nobody counts them."""
    if device.type != "cpu":
        return int(torch.get_device_module(device).max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
