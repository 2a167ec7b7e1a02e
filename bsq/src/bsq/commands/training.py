"""What the three trainings share (float, bits, fine-tuning): their job, and the evaluation after each epoch."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from bsq import checkpoint
from bsq.commands import opening, printed
from bsq.commands.evaluating import Evaluator
from bsq.network import check_widths, nbit_dict
from bsq.options import flag_of
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone
from lowbit.files import replace_file
from lowbit.metrics import number, read_metrics
from lowbit.options import SgdOptions
from lowbit.train.batch import of_job
from lowbit.train.folder import RunFolder
from lowbit.train.job import Job
from lowbit.train.optim import stated_schedule
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.run import Result


class Accuracies:
    """`acc` of a checkpoint's very net and `best_acc` of all epochs so far, in percent, as in the authors' files.

    Args:
        resumed: the checkpoint that the run goes on from.
    """

    def __init__(self, resumed: Mapping[str, Any] | None) -> None:
        self.best = None if resumed is None else number(resumed.get("best_acc"))

    def of(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The entries where a net has these figures; without `top1` it was not evaluated."""
        found = figures.get("top1")
        if found is not None:
            self.best = found if self.best is None else max(self.best, found)
        return {name: value for name, value in (("acc", found), ("best_acc", self.best)) if value is not None}


def training_job(
    evaluator: Evaluator, command: str, objective: Objective, recipe: Recipe, header: Mapping[str, Any],
    sgd: SgdOptions, *groups: Any, accuracies: Accuracies,
    extra: Callable[[Objective], Mapping[str, Any]] = lambda objective: {}, best: bool = True, **more: Any,
) -> Job:  # fmt: skip
    """The job of one objective, whose `student` is the net.

    Args:
        evaluator: of the command.
        command: its name.
        objective: of the training.
        recipe: of the training pictures.
        header: entries of every checkpoint.
        sgd: batch, epochs and rates.
        groups: other option dataclasses that `config.json` records and a resumed run has in common with its start.
        accuracies: of the run.
        extra: more entries of each checkpoint.
        best: whether the best epoch on the evaluation set is kept as `model_best.pth.tar`.
        more: `start` of the `Job`.
    """
    session, options = evaluator.session, evaluator.session.options
    kept, held = session.train_and_held()
    batch = of_job(sgd.train_batch, session.accelerator.num_processes, accumulate=options.accumulate)
    loader = session.loader(kept, recipe, batch)
    stage = Stage(objective, sgd.epochs, {"main": stated_schedule(sgd)})
    shared = {**sgd.compared, "--image-size": header["input_size"][1]}
    for group in groups:
        for name, value in asdict(group).items():
            shared[flag_of(f"{type(group).__name__}.{name}")] = list(value) if isinstance(value, tuple) else value
    return Job(
        session, command, [stage], loader, batch, header=header, shared=shared,
        described=opening.described(evaluator.net, sgd, *groups), prefixes={"student.": checkpoint.PREFIX},
        extra=lambda objective, figures: {**accuracies.of(figures), **extra(objective)},
        best=("top1" if held is None else "val_top1") if best else None, **more,
    )  # fmt: skip


def check(job: Job) -> None:
    """`Job.check`, and whether a resumed net, whose weights were put back, has the widths that its file says.

    Raises:
        InputError: see there; the first layer that has not.
    """
    job.check()
    held = nbit_dict(job.stages[0].objective.get_submodule("student"))
    if job.run.resume is None or not held:
        return
    with job.resuming():
        said = check_widths(job.run.resume.get("Nbit_dict", {}))
        for name, bits in check_widths(held).items():
            if (told := said.get(name)) != bits:
                both = f"layer {name} holds {bits} bits (weight, bias), and the checkpoint's Nbit_dict says {told}"
                raise InputError(f"{both}: name the --model that the run was started with, or another checkpoint")


class Validation:
    """Evaluates after each epoch: the figures of the `eval` line, the printed line, the authors' `log.txt`.

    Args:
        evaluator: of the command.
        job: of the run.
        folder: of the run.
        accuracies: of the run.
        compression: of the net that a bit training starts from, for `log.txt`.
    """

    def __init__(
        self, evaluator: Evaluator, job: Job, folder: RunFolder | None, accuracies: Accuracies,
        compression: float | None = None,
    ) -> None:  # fmt: skip
        self.evaluator, self.job, self.folder = evaluator, job, folder
        self.accuracies, self.compression = accuracies, compression

    def __call__(self, clock: Clock, objective: Objective, **more: float) -> Mapping[str, float]:
        """A probe for `Job.fit`; `more`: figures of the caller, for the line and for `log.txt`."""
        evaluator, session, net = self.evaluator, self.evaluator.session, objective.get_submodule("student")
        scores, held = evaluator.evaluate(net, evaluator.test), session.train_and_held()[1]
        values = {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}
        if held is not None:
            values["val_top1"] = evaluator.evaluate(net, held).top1
        values |= more
        self.accuracies.of(values)
        rate = self.job.stages[0].lr["main"](clock._replace(step=0))
        session.say(f"Epoch: [{clock.epoch + 1} | {clock.epochs}] LR: {rate:f}", printed.test_line(scores))
        if self.folder is not None and session.accelerator.is_main_process:
            now: dict[str, Any] = {"event": "eval", "epoch": clock.epoch, **values}
            text = printed.log_text([*read_metrics(self.folder.metrics), now], self.compression)
            replace_file(self.folder.path / "log.txt", text.encode())
        return values


def finish(job: Job, folder: RunFolder | None, result: Result, values: Mapping[str, Any]) -> None:
    """Results of a run that is over, or that `--max-steps` ended; `values`: the command's own."""
    if result.best:
        job.session.say("Best acc:", f"{result.best[str(job.run.best)]:.2f}")
    job.write_result(folder, result, values)
    net = job.stages[0].objective.get_submodule("student")
    said = [job.run.header[key] for key in ("arch", "pretrained_cfg")]
    job.export(folder, result, lambda path: save_backbone(net, path / "backbone.safetensors", *said))
