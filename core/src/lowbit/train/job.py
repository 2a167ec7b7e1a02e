"""`Job`: what a training command does between its objective and `fit`, read top to bottom in the command.

    job = Job(session, "train", [stage], loader, batch, header=..., shared=..., described=...)
    job.check()                       # everything that can be refused
    if job.planned({"dataset": ...}): # --dry-run
        return None
    with job.open() as folder:        # lock, config.json, the best state of a run that is resumed from elsewhere
        result = job.fit(folder, [probe])
        job.write_result(folder, result, {...})
        job.export(folder, result, lambda path: save_backbone(net, path / "backbone.safetensors", arch))

A run that is resumed gets back what its checkpoint carries beside the loop's: `start`, figures of the net that the run
began with.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from lowbit import curves
from lowbit.checkpoint.read import read_checkpoint
from lowbit.data.loader import Loader
from lowbit.errors import InputError
from lowbit.files import open_regular, replace_file
from lowbit.train import run as runs
from lowbit.train.batch import BatchPlan
from lowbit.train.folder import RunFolder
from lowbit.train.loop import check_run, fit
from lowbit.train.process import on_main, peak_memory
from lowbit.train.protocol import Objective, Stage
from lowbit.train.run import Probe, Result, Run
from lowbit.train.session import Session

AT_START = "at_start"  # the entry of a checkpoint
TRIAL_STEPS = 2  # timed by a dry run, after one step that compiles and starts the libraries

log = logging.getLogger(__name__)


class Job:
    """One training run of a command.

    Args:
        session: of the command.
        command: its name.
        stages: of the run.
        loader: of the training pictures.
        batch: pictures per step.
        header: entries of every checkpoint (`format`, `package`, `arch`, ...).
        shared: the command's own options that a resumed run must have in common with its start, by the name the user
            gives them (seed, data set, chosen pictures, batch and clipping are compared for all commands).
        described: entries of `config.json` beside the session's options.
        facts: more entries of `config.json` and `result.json`, which are also logged.
        prefixes: as in `Run`.
        extra: the method's own entries of a checkpoint, as in `Run`.
        start: figures of the net that the run starts from; `read_start` has those of a resumed run. The command may
            add to them until `fit`. None: checkpoints carry none.
        best: a value of the probes; `model_best.pth.tar` is kept where it is highest.
        log_every: steps between `step` lines of metrics.
        resume_option: how the command spells `--resume`.
    """

    def __init__(
        self, session: Session, command: str, stages: Sequence[Stage], loader: Loader, batch: BatchPlan, *,
        header: Mapping[str, Any], shared: Mapping[str, Any], described: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None, prefixes: Mapping[str, str] | None = None,
        extra: Callable[[Objective, Mapping[str, float]], Mapping[str, Any]] | None = None,
        start: dict[str, float] | None = None, best: str | None = None, log_every: int = 50,
        resume_option: str = "--resume",
    ) -> None:  # fmt: skip
        self.session, self.command, self.stages, self.loader, self.batch = session, command, stages, loader, batch
        self.described, self.start, self.resume_option = described, start, resume_option
        self.facts = {**batch.facts, **(facts or {})}
        given = session.options
        common = {"--limit-train": given.limit_train, "--val-split": given.val_split, "--clip-grad": given.clip_grad}

        def entries(objective: Objective, figures: Mapping[str, float]) -> dict[str, Any]:
            carried = {} if self.start is None else {AT_START: self.start}
            return {**carried, **(extra(objective, figures) if extra is not None else {})}

        self.run = Run(
            **session.run_options(),
            accumulate=batch.parts,
            log_every=log_every,
            options={"command": command, **shared, "dataset": session.dataset, **common},
            header=header,
            extra=entries,
            prefixes=prefixes or {},
            best=best,
        )

    @property
    def resumed(self) -> bool:
        """Whether the run goes on from a checkpoint."""
        return self.run.resume is not None

    def check(self) -> None:
        """Everything that can be refused before a folder is written to. A run without a good checkpoint starts fresh.

        Raises:
            InputError: see `check_run`; a batch of one picture where batch norm is trained, which has no variance.
        """
        check_run(self.stages, self.loader, dataclasses.replace(self.run, resume=None))
        smallest = self.loader.last_batch // (self.run.accelerator.num_processes * self.batch.parts)
        if smallest < 2 and any(_trains_batch_norm(stage.objective) for stage in self.stages):
            raise InputError(
                f"the last batch of an epoch has {self.loader.last_batch} pictures for "
                f"{self.run.accelerator.num_processes} processes x {self.batch.parts} parts, and batch norm needs two "
                f"in each: change {self.batch.option}"
            )
        with self.resuming():
            check_run(self.stages, self.loader, self.run)
        self._check_best()

    def _check_best(self) -> None:
        """Forget the best state of a resumed run where its file is missing: the best of what follows is kept then."""
        resume, best = self.run.resume, self.best_of_resumed
        if resume is None or best is None or self.run.best is None or not resume["best"]:
            return
        try:
            on_main(self.session.accelerator, lambda: read_checkpoint(best))
        except InputError as error:
            if self.session.accelerator.is_main_process:
                log.warning("the best state so far is lost, the best of the epochs to come is kept: %s", error)
            self.run = dataclasses.replace(self.run, resume={**resume, "best": None})

    @property
    def best_of_resumed(self) -> Path | None:
        """Where the best state of the resumed run is, beside its checkpoint; None without a folder to keep it in."""
        resume, folder = self.session.options.resume, self.session.options.output
        if resume is None or folder is None:
            return None
        best = self.session.names.best
        return folder / best if resume == "auto" else Path(resume).with_name(Path(best).name)

    @contextmanager
    def resuming(self) -> Iterator[None]:
        """Errors inside are about the checkpoint that is resumed: their message names it."""
        try:
            yield
        except InputError as error:
            resume, text = self.session.options.resume, str(error)
            if resume is None or str(resume) in text:
                raise
            raise InputError(f"{self.resume_option} {resume}: {text.removeprefix('--resume: ')}") from error

    def planned(self, facts: Mapping[str, Any], passes: int | None = None) -> bool:
        """With `--dry-run` train a few steps for their time and say what the whole would be; False without it.

        Args:
            facts: the command's own, which are said first.
            passes: how often the set runs through the net; None: in every epoch.
        """
        if not self.session.options.dry_run:
            return False
        self.batch.log_remark(self.session.accelerator)
        short = dataclasses.replace(self.run, max_steps=1, save_every=None, resume=None)
        fit(self.stages, self.loader, short)
        trial = fit(self.stages, self.loader, dataclasses.replace(short, max_steps=TRIAL_STEPS))
        epochs, pictures = sum(stage.epochs for stage in self.stages), len(self.loader.pictures)
        plan = {
            "net": self.run.header.get("arch"),
            "parameters": sum(p.numel() for p in self.stages[0].objective.parameters()),
            "training pictures": pictures,
            "batch_per_process": self.batch.per_process,
            "global_batch": self.batch.total,
            "steps": epochs * len(self.loader),
            "steps per epoch": len(self.loader),
            "estimated seconds": (epochs if passes is None else passes) * pictures / trial.images_per_second,
            "bytes of a checkpoint": trial.checkpoint_bytes,
            # the last, the one before, the next while it is written, and the best
            "bytes on disk at most": (3 + (self.run.best is not None)) * trial.checkpoint_bytes,
            "bytes in memory": peak_memory(self.run.accelerator.device),
        }
        self.session.say_facts({**facts, **plan})
        return True

    @contextmanager
    def open(self) -> Iterator[RunFolder | None]:
        """The run's folder, None without `--output`; a run resumed from elsewhere takes its best state along.

        Raises:
            InputError: it may not be written to.
        """
        with self.session.open_folder(self.command, self.described, self.facts) as folder:
            self.batch.log_remark(self.session.accelerator)
            self._bring_best(folder)
            yield folder

    def _bring_best(self, folder: RunFolder | None) -> None:
        best = self.best_of_resumed
        if folder is None or best is None:
            return
        if self.run.resume is None or (self.run.best is not None and not self.run.resume["best"]):
            return

        def copy() -> None:
            try:
                if best.exists() and not (folder.best.exists() and best.samefile(folder.best)):
                    with open_regular(best) as file:
                        folder.best.parent.mkdir(exist_ok=True)
                        replace_file(folder.best, file.read())
            except OSError as error:
                name = f"{self.resume_option} {self.session.options.resume}"
                raise InputError(f"{name}: cannot read {best}: {error.strerror or error}") from error

        on_main(self.session.accelerator, copy)

    def fit(self, folder: RunFolder | None, probes: Sequence[Probe] = (), loader: runs.Loader | None = None) -> Result:
        """Train.

        Args:
            folder: of the run.
            probes: as in `Run`.
            loader: what to train on in place of pictures (their features), with the same batches.

        Raises:
            InputError: see `lowbit.train.loop.fit`.
            Stopped: a stop signal came; the run is saved.
        """
        run = dataclasses.replace(self.run, folder=folder, probes=tuple(probes))
        return fit(self.stages, loader or self.loader, run)

    def write_result(self, folder: RunFolder | None, result: Result, values: Mapping[str, Any]) -> None:
        """Write `result.json` and `curves.png` of a run that is over, or that `--max-steps` ended.

        Args:
            folder: of the run.
            result: of `fit`.
            values: the command's own.
        """
        common = {
            **result.eval,
            "train_loss": result.train.get("loss"),
            "best": result.best,
            "steps": result.done,
            "seconds": result.seconds,
            "images_per_second": result.images_per_second,
            "finished": result.finished,
            **self.facts,
            "pictures": len(self.loader.pictures),
        }
        self.session.write_result(folder, {**common, **values})
        if folder is not None and self.session.accelerator.is_main_process:
            curves.plot_run(folder.path)

    def export(self, folder: RunFolder | None, result: Result, write: Callable[[Path], object]) -> None:
        """Of a run that is over, and has a folder: what the command makes of its net, written there by one process.

        Raises:
            InputError: `write` does, on the first process.
        """
        if folder is not None and result.finished:
            on_main(self.session.accelerator, lambda: write(folder.path))


def read_start(session: Session) -> dict[str, float]:
    """The figures of its start that the checkpoint of a resumed run carries; {} of a fresh run.

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


def _trains_batch_norm(objective: Objective) -> bool:
    objective.train()
    return any(isinstance(module, _BatchNorm) and module.training for module in objective.modules())
