"""What the three trainings share (float, bits, fine-tuning): data, the run, the record, the files at the end."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bsq import checkpoint
from bsq.commands import printed
from bsq.commands.evaluating import Session
from bsq.network import check_widths, nbit_dict
from bsq.options import SgdOptions, flag_of
from lowbit.checkpoint.write import BEST
from lowbit.data.loader import Loader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone
from lowbit.files import replace_file
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.folder import RunFolder
from lowbit.train.log import read_metrics
from lowbit.train.loop import Result, Run, check_run, fit
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.schedule import milestones

AT_START = "at_start"
TRIAL_STEPS = 3  # timed by a dry run


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One training.

    Attributes:
        command: its name.
        objective: its `student` is the net.
        recipes: preparation of pictures for training and evaluation.
        header: entries of every checkpoint.
        extra: entries asked for at each save.
        columns: of `log.txt`.
        row: `epoch` and `eval` line of an epoch -> values of the columns; the `epoch` line also has the `compression`
            of the last `requantize` line, if any.
        values: more entries of the `eval` line.
        best: whether the best epoch on the evaluation set is kept as `model_best.pth.tar`.
        groups: option dataclasses that `config.json` records.
        at_start: figures of the net that a run starts from; checkpoints carry them, so that a resumed run has them.
        opened: called with the folder before training (None without one).
        start: called before the training of a fresh run; sets `at_start`.
        end: called with the folder and the result; gives entries of `result.json`.
    """

    command: str
    objective: Objective
    recipes: tuple[Recipe, Recipe]
    header: Mapping[str, Any]
    extra: Callable[[Objective], Mapping[str, Any]] = lambda objective: {}
    columns: Sequence[str] = printed.COLUMNS
    row: Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[float]] = printed.row
    values: Callable[[], Mapping[str, float]] = dict
    best: bool = True
    groups: Sequence[Any] = ()
    at_start: dict[str, float] = field(default_factory=dict)
    opened: Callable[[RunFolder | None], None] = lambda folder: None
    start: Callable[[], None] = lambda: None
    end: Callable[[RunFolder | None, Result], Mapping[str, Any]] = lambda folder, result: {}

    @property
    def student(self) -> nn.Module:
        """The net."""
        return self.objective.get_submodule("student")


def student(session: Session, model: nn.Module) -> nn.Module:
    """The net where it is trained; on several processes batch norm is that of the whole batch."""
    model = session.place(model)
    return sync_batchnorm_(model) if session.accelerator.num_processes > 1 else model


def run_phase(session: Session, sgd: SgdOptions, phase: Phase) -> Result | None:
    """Check, then train, evaluate after each epoch, write the results. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    options = session.options
    kept, held = session.train_and_held()
    common = {**session.loader_options(), "dtype": session.dtype}
    loader = Loader(kept, phase.recipes[0], global_batch=sgd.train_batch, seed=options.seed, **common)
    stage = Stage(phase.objective, sgd.epochs, {"main": milestones(sgd.lr, sgd.schedule, sgd.gamma)})
    chosen_by = "top1" if held is None else "val_top1"
    run = Run(
        **session.run_options(),
        accumulate=options.accumulate,
        options=_shared(session, sgd, phase),
        header=phase.header,
        extra=lambda objective: {AT_START: phase.at_start, **phase.extra(objective)},
        prefixes={"student.": checkpoint.PREFIX},
        best=chosen_by if phase.best else None,
    )
    try:
        started(session)
        check_run([stage], loader, run)
        _check_widths(session, phase.student)
    except InputError as error:
        text = str(error)
        if options.resume is None or str(options.resume) in text:
            raise
        raise InputError(f"--resume {options.resume}: {text.removeprefix('--resume: ')}") from error
    if options.dry_run:
        _say_plan(session, phase, stage, loader, run)
        return None
    sizes = session.batch_sizes(sgd.train_batch)
    with session.folder(phase.command, sgd, *phase.groups, **sizes) as folder:
        session.say(*printed.parameters(phase.student))
        phase.opened(folder)
        if run.resume is None:
            phase.start()
        else:
            phase.at_start.update(started(session))
            _bring_best(session, folder)

        def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
            return _probe(session, phase, stage, folder, held, clock)

        result = fit([stage], loader, dataclasses.replace(run, folder=folder, probes=(probe,)))
        facts = {**sizes, "pictures": len(kept), **phase.end(folder, result)}
        _finish(session, phase, folder, result, facts, chosen_by)
    return result


def started(session: Session) -> dict[str, float]:
    """The figures of the start that a resumed run's checkpoint carries; {} of a fresh run.

    Raises:
        InputError: they are no figures.
    """
    resumed = session.resumed()
    found = {} if resumed is None else resumed.get(AT_START, {})
    right = isinstance(found, Mapping) and all(isinstance(k, str) and type(v) is float for k, v in found.items())
    if not right:
        name = f"--resume {session.options.resume}"
        raise InputError(f"{name}: the checkpoint's {AT_START} is damaged ({found!r:.80}); name another")
    return dict(found)


def _check_widths(session: Session, net: nn.Module) -> None:
    """Whether a resumed net, whose weights were just put back, has the widths that its file says.

    Raises:
        InputError: the first layer that has not.
    """
    resumed, held = session.resumed(), nbit_dict(net)
    if resumed is None or not held:
        return
    told = check_widths(resumed.get("Nbit_dict", {}))
    for name, bits in check_widths(held).items():
        if told.get(name) != bits:
            raise InputError(
                f"layer {name} holds {bits} bits (weight, bias), and the checkpoint's Nbit_dict says {told.get(name)}: "
                "name the --model that the run was started with, or another checkpoint"
            )


def _bring_best(session: Session, folder: RunFolder | None) -> None:
    """A run resumed into another folder takes the best state so far along."""
    resume = session.options.resume
    if folder is None or resume in (None, "auto") or not session.accelerator.is_main_process:
        return
    best = Path(str(resume)).with_name(BEST)
    if best.exists() and not folder.best.exists():
        replace_file(folder.best, best.read_bytes())


def _shared(session: Session, sgd: SgdOptions, phase: Phase) -> dict[str, Any]:
    """What a resumed run must have in common with its start, as a checkpoint can hold it."""
    options = session.options
    pictures = {"limit_train": options.limit_train, "val_split": options.val_split, "clip_grad": options.clip_grad}
    values = {**dataclasses.asdict(sgd), **pictures}
    for group in phase.groups:
        values |= {f"{type(group).__name__}.{name}": value for name, value in dataclasses.asdict(group).items()}
    del values["epochs"], values["train_batch"]  # the loop compares them itself
    return {flag_of(name): list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _probe(
    session: Session, phase: Phase, stage: Stage, folder: RunFolder | None, held: Pictures | None, clock: Clock
) -> Mapping[str, float]:
    """Evaluate after each epoch; the record's line, and the authors' `log.txt`, made anew from the metrics."""
    scores = session.evaluate(phase.student, session.test, phase.recipes[1])
    values = {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}
    if held is not None:
        values["val_top1"] = session.evaluate(phase.student, held, phase.recipes[1]).top1
    values.update(phase.values())
    rate = stage.lr["main"](clock._replace(step=0))
    session.say(f"Epoch: [{clock.epoch + 1} | {clock.epochs}] LR: {rate:f}", printed.test_line(scores))
    if folder is not None and session.accelerator.is_main_process:
        now: dict[str, Any] = {"event": "eval", "epoch": clock.epoch, **values}
        text = printed.log_text([*read_metrics(folder.metrics), now], phase.columns, phase.row)
        replace_file(folder.path / "log.txt", text.encode())
    return values


def _finish(
    session: Session,
    phase: Phase,
    folder: RunFolder | None,
    result: Result,
    facts: Mapping[str, Any],
    chosen_by: str,
) -> None:
    """Results of a run that is over, or that `--max-steps` ended."""
    best = result.best or {}
    if best:
        session.say("Best acc:", f"{best[chosen_by]:.2f}")
    values = {**result.eval, "train_loss": result.train.get("loss"), "best": best or None, "steps": result.done}
    speed = {"seconds": result.seconds, "images_per_second": result.images_per_second, "finished": result.finished}
    session.write_result(folder, {**values, **speed, **facts})
    if folder is not None and result.finished and session.accelerator.is_main_process:
        save_backbone(phase.student, folder.path / "backbone.safetensors", str(session.net.arch))


def _say_plan(session: Session, phase: Phase, stage: Stage, loader: Loader, run: Run) -> None:
    """Train a few steps for their time, and say what the whole would be."""
    trial = fit([stage], loader, dataclasses.replace(run, max_steps=TRIAL_STEPS, save_every=None, resume=None))
    steps, pictures = stage.epochs * len(loader), stage.epochs * len(loader.pictures)
    plan: dict[str, float] = {"steps": steps, "steps per epoch": len(loader), "training pictures": len(loader.pictures)}
    seconds = pictures / trial.images_per_second
    session.say_plan(phase.student, {**plan, "estimated seconds": seconds})
