"""Pictures per step. What a command calls its batch is the original program's: of a process, a machine or the job."""

import logging
from dataclasses import dataclass

from accelerate import Accelerator

from lowbit.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Pictures per optimizer step.

    Attributes:
        total: of all processes. per_process: of one, in one forward where nothing is accumulated.
        parts: that each process splits its pictures into (`Run.accumulate`).
        option: what the user changes to get another batch.
        remark: for whoever reads the log, if there is something to say.
    """

    total: int
    per_process: int
    parts: int
    option: str
    remark: str = ""

    @property
    def facts(self) -> dict[str, int]:
        """As `config.json`, `result.json` and a dry run say it."""
        return {"global_batch": self.total, "batch_per_process": self.per_process, "accumulate_parts": self.parts}

    def log_remark(self, accelerator: Accelerator) -> None:
        """Call it when nothing is left to refuse, so that a refusal is one line."""
        if self.remark and accelerator.is_main_process:
            log.warning(self.remark)


def check_queue(batch: BatchPlan, length: int, option: str) -> None:
    """Refuse a batch that a queue of keys cannot hold.

    Args:
        batch: pictures per step.
        length: of the queue.
        option: that states it.

    Raises:
        InputError: the queue is shorter.
    """
    if batch.total > length:
        raise InputError(f"a queue of {option}={length} keys is shorter than a batch of {batch.total} pictures")


def check_shuffle(batch: BatchPlan, world: int) -> None:
    """Refuse parts of a batch on several processes where MoCo shuffles its keys over them.

    Raises:
        InputError: it is so.
    """
    if batch.parts > 1 and world > 1:
        raise InputError("MoCo's key shuffle over processes needs the whole batch at once: leave out what accumulates")


def of_job(pictures: int, world: int, *, accumulate: int = 1, option: str = "--train-batch") -> BatchPlan:
    """A batch that is stated for the whole job.

    Args:
        pictures: of all processes.
        world: number of processes.
        accumulate: parts that the batch is split into.
        option: that states it.
    """
    return BatchPlan(total=pictures, per_process=-(-pictures // world), parts=accumulate, option=option)


def per_node(pictures: int, world: int, local: int, *, accumulate: int = 1, option: str = "--batch-size") -> BatchPlan:
    """A batch that is stated for each machine, and split over its processes.

    Args:
        pictures: of a machine.
        world: number of processes.
        local: processes of a machine, the same number on each (LOCAL_WORLD_SIZE of torchrun and accelerate).
        accumulate: parts that each process splits its pictures into.
        option: that states it.

    Raises:
        InputError: the processes are not whole machines, or the pictures cannot be split evenly.
    """
    if local < 1 or world % local:
        raise InputError(f"{option}={pictures} is of a machine: {world} process(es) are not machines of {local} each")
    if pictures < 1 or pictures % local:
        raise InputError(f"{option}={pictures} is of a machine with {local} process(es): give a multiple of {local}")
    each = pictures // local
    return BatchPlan(total=each * world, per_process=each, parts=accumulate, option=option)


def per_process(
    pictures: int, world: int, *, accumulate: int = 1, wanted: int | None = None, keep: bool = False,
    options: tuple[str, str] = ("--batch-size", "--global-batch"),
) -> BatchPlan:  # fmt: skip
    """A batch that is stated for each process; another total than the learning rate was chosen for makes a remark.

    Args:
        pictures: of a process.
        world: number of processes.
        accumulate: parts that each batch is split into.
        wanted: total that the learning rate was chosen for.
        keep: accumulate gradients until it is reached (`--keep-global-batch`).
        options: that state `pictures` and `wanted`.

    Raises:
        InputError: `wanted` is no multiple of what the processes see.
    """
    option, whole = options
    total, said = pictures * world, f"{option}={pictures} on {world} process(es)"
    parts, remark = 1, ""
    if wanted is not None and wanted != total:
        if not keep:
            remark = (
                f"{said} makes batches of {total} pictures, and the learning rate was chosen for {whole}={wanted}; it "
                "stays as it is: --keep-global-batch accumulates gradients"
            )
        elif wanted % total:
            raise InputError(
                f"--keep-global-batch: {said} makes {total} pictures, of which {whole}={wanted} is no multiple: change "
                f"{option}"
            )
        else:
            parts, total = wanted // total, wanted
    return BatchPlan(total=total, per_process=pictures, parts=parts * accumulate, option=option, remark=remark)
