"""What the commands of all methods share: devices, the data, the record, the folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from lowbit.checkpoint.read import newest_good, read_checkpoint
from lowbit.checkpoint.write import NAMES, Names
from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import MemoryPictures, Pictures, balanced_subset, val_split
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError, Stopped
from lowbit.options import CORES, RunOptions
from lowbit.outcome import note_figures
from lowbit.train import console
from lowbit.train.batch import BatchPlan
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.folder import RunFolder
from lowbit.train.process import finish, local_processes, make_accelerator, on_main, start_trackers
from lowbit.train.resume import check_release

log = logging.getLogger(__name__)


class Session:
    """One command's devices and data; a `with` block, at whose end all processes wait for each other.

    From its start torch's global generator is seeded, so that networks drawn next are a function of `--seed`.

    Args:
        package: of the method: the name that trackers get.
        options: of every command.
        dataset: a name of `lowbit.data.datasets`.
        inputs: files that the command reads, which its folder may not hold, beside the one that is resumed.
        dtype: of the weights.
        resumes: whether the command can go on with a run that was stopped.
        files: patterns of the method's own files in a run's folder, which --overwrite removes.
        names: of the checkpoints there.

    Attributes:
        accelerator: devices and processes.
        chosen: positions kept by a limit, by set.

    Raises:
        InputError: the folder holds a run; fp16 on the CPU; an unknown tracker.
    """

    def __init__(
        self,
        package: str,
        options: RunOptions,
        dataset: str,
        inputs: Sequence[Path | str | None] = (),
        dtype: torch.dtype = torch.float32,
        resumes: bool = True,
        files: Sequence[str] = (),
        names: Names = NAMES,
    ) -> None:
        self.names = names
        self.package, self.options, self.dataset, self.dtype = package, options, dataset, dtype
        resume = options.resume is not None if resumes else None
        self._again: dict[str, Any] = {"resume": resume, "overwrite": options.overwrite}
        self.accelerator = make_accelerator(options.mixed_precision, options.trackers, options.output)
        if options.output is not None:
            read = [Path(name) for name in (options.resume, *inputs) if name not in (None, "", "auto")]
            check = partial(RunFolder.check, options.output, **self._again, inputs=read, files=files)
            on_main(self.accelerator, check)
        torch.manual_seed(options.seed)
        self.files = files
        self.chosen: dict[str, list[int]] = {}
        self._sets: dict[str, Pictures] = {}
        self._split: tuple[Pictures, Pictures | None] | None = None
        self._resumed: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or issubclass(kind, Stopped):
            finish(self.accelerator)

    def _download(self) -> None:
        for split in ("train", "test"):
            load_dataset(self.dataset, self.options.data, split, download=True)

    def pictures(self, split: Literal["train", "test"], *, labels: bool = True) -> Pictures:
        """One set, cut to the pictures of its `--limit-...`, class-balanced and by a fixed seed; read once.

        With `--download` one process fetches both sets before the first is read.

        Args:
            split: which.
            labels: whether the command needs them; if not, a folder without classes is taken too.

        Raises:
            InputError: the dataset cannot be had or read, or the limit is larger than it.
        """
        if not self._sets and self.options.download and not self.options.dry_run:
            on_main(self.accelerator, self._download)
        if split not in self._sets:
            self._sets[split] = self._read(split, labels)
        return self._sets[split]

    def _read(self, split: Literal["train", "test"], labels: bool) -> Pictures:
        if self.accelerator.is_main_process:
            console.show(f"reading {self.dataset} …")
        limit = self.options.limit_train if split == "train" else self.options.limit_eval
        found = load_dataset(
            self.dataset, self.options.data, split, max_corrupt=self.options.max_corrupt, labels=labels
        )
        if limit is None:
            return found
        index = balanced_subset(found.labels, limit)
        self.chosen[split] = index.tolist()
        return found.subset(index)

    def train_and_held(self) -> tuple[Pictures, Pictures | None]:
        """Training pictures, and those that `--val-split` holds out of them; split once.

        Raises:
            InputError: as `pictures`; the fraction holds out nothing.
        """
        if self._split is None:
            self._split = self._hold_out(self.pictures("train"))
        return self._split

    def _hold_out(self, pictures: Pictures) -> tuple[Pictures, Pictures | None]:
        if self.options.val_split is None:
            return pictures, None
        kept, held = val_split(pictures.labels, self.options.val_split, self.options.seed)
        of_all = self.chosen.get("train", range(len(pictures)))  # positions in the whole set
        self.chosen |= {"train": [of_all[i] for i in kept.tolist()], "val": [of_all[i] for i in held.tolist()]}
        return pictures.subset(kept), pictures.subset(held)

    def place(self, model: nn.Module, *, sync_batchnorm: bool = False) -> nn.Module:
        """The model on the device, in the precision and memory format of the command.

        Args:
            model: placed and changed itself.
            sync_batchnorm: on several processes batch norm is that of the whole batch.

        Raises:
            InputError: a batch norm that cannot be synchronised.
        """
        if sync_batchnorm and self.accelerator.num_processes > 1:
            model = sync_batchnorm_(model)
        model = model.to(self.accelerator.device, self.dtype)
        if self.options.channels_last:
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.dim() == 4:  # planes have 5 dimensions, which torch's own conversion refuses
                    tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        return model

    def loader(self, pictures: Pictures, recipe: Recipe, batch: BatchPlan, **more: Any) -> Loader:
        """Training batches of this command, in its precision; `more`: arguments of `Loader`."""
        options = {"global_batch": batch.total, "seed": self.options.seed, "dtype": self.dtype, **more}
        return Loader(pictures, recipe, **options, **self.loader_options())

    def eval_loader(self, pictures: Pictures, recipe: Recipe, batch_size: int = 256) -> EvalLoader:
        """Evaluation batches of this command, whole ones for each process."""
        return EvalLoader(pictures, recipe, batch_size=batch_size, **self.loader_options())

    @cached_property
    def workers(self) -> int:
        """Processes that read for each loader: those of `--workers`, at most this process's share of the cores."""
        wanted, share = self.options.workers, -(-CORES // local_processes())
        if wanted > share and not all(isinstance(pictures, MemoryPictures) for pictures in self._sets.values()):
            log.info("--workers %d: each loader starts %d, as many as there are cores for it", wanted, share)
        return min(wanted, share)

    def loader_options(self) -> dict[str, Any]:
        """What all loaders of this command have in common; pictures are prepared in single precision."""
        return {
            "rank": self.accelerator.process_index,
            "world": self.accelerator.num_processes,
            "device": self.accelerator.device,
            "workers": self.workers,
            "max_corrupt": self.options.max_corrupt,
            "channels_last": self.options.channels_last,
        }

    def run_options(self) -> dict[str, Any]:
        """What all runs of `lowbit.train.loop` of this command have in common; `resume` is read here.

        Raises:
            InputError: see `resumed`.
        """
        return {
            "accelerator": self.accelerator,
            "seed": self.options.seed,
            "max_steps": self.options.max_steps,
            "save_every": self.options.save_every,
            "clip_grad": self.options.clip_grad,
            "compile": self.options.compile,
            "resume": self.resumed(),
        }

    def say(self, *lines: str) -> None:
        """Lines of the record, on stdout, once for all processes."""
        if self.accelerator.is_main_process:
            console.say(*lines)

    def say_facts(self, facts: Mapping[str, Any]) -> None:
        """The lines of a dry run: a name and a value each, then the folder."""
        note_figures(facts)
        for name, value in {**facts, "output": self.options.output}.items():
            shape = ",.0f" if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 10) else ".3g"
            self.say(f"{name}: {value:{shape}}" if isinstance(value, float | int) else f"{name}: {value}")

    def resumed(self) -> Mapping[str, Any] | None:
        """The checkpoint that `--resume` names, read once; None: a fresh start.

        Raises:
            InputError: it cannot be read, another release wrote it, or a folder holds no good one.
        """
        if self._resumed is None and self.options.resume is not None:
            self._resumed = self._read_resumed(self.options.resume)
        return self._resumed

    def _read_resumed(self, resume: str) -> Mapping[str, Any] | None:
        if resume != "auto":
            state = read_checkpoint(resume)
        else:
            found = None if self.options.output is None else newest_good(self.options.output, self.names.last)
            if found is None:
                return None
            state = found[1]
        try:
            check_release(state)  # before the command reads more of it
        except InputError as error:
            raise InputError(f"--resume {resume}: {str(error).removeprefix('--resume: ')}") from error
        return state

    @contextmanager
    def open_folder(
        self, command: str, options: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> Iterator[RunFolder | None]:
        """The run's folder, locked and described by every resolved option; None without `--output`. Says the facts.

        Args:
            command: its name.
            options: entries of `config.json` beside those of every command.
            facts: more entries, which are also said.

        Raises:
            InputError: it may not be written to.
            Stopped: from inside; of a command that cannot go on it says how to begin again.
        """
        where, said = self.options.output, ", ".join(f"{name} {value}" for name, value in facts.items())
        if where is None:
            console.checked()
            log.info(said)
            yield None
            return
        values = {"command": command, **asdict(self.options), **options}
        values |= {"processes": self.accelerator.num_processes, "chosen": self.chosen, **facts}
        opened: list[RunFolder] = []

        def open_it() -> None:
            opened.append(RunFolder.open(where, values, **self._again, files=self.files, names=self.names))

        on_main(self.accelerator, open_it)
        with opened[0] if opened else RunFolder(where, locked=False, names=self.names) as folder:
            if self.options.trackers:
                start_trackers(self.accelerator, self.package, values)
            console.checked()
            log.info(said)
            try:
                yield folder
            except Stopped as stop:
                if self._again["resume"] is not None:
                    raise
                raise Stopped(f"{stop}; {command} begins anew with --overwrite") from stop

    def write_result(self, folder: RunFolder | None, values: Mapping[str, Any]) -> None:
        """Write `result.json`, by one process."""
        result = {**values, "seed": self.options.seed}
        note_figures(result)
        if folder is not None and self.accelerator.is_main_process:
            folder.write_result(result)
