"""The folder of a run: its files, and whether it may be written to."""

import contextlib
import functools
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from lowbit.checkpoint.write import BEST, CHECKPOINT, NAMES, Names
from lowbit.errors import InputError, Stopped
from lowbit.files import open_regular, previous, write_json
from lowbit.outcome import note_figures, note_folder
from lowbit.train import lock
from lowbit.train.lock import FolderLock, refuse_busy
from lowbit.train.place import check_files, check_place, check_weights

CONFIG, LOG = "config.json", "train.log"
WEIGHTS = (CHECKPOINT, previous(Path(CHECKPOINT)).name, BEST, "checkpoint_[0-9]*.pth.tar")  # that a training writes
# What `--overwrite` removes beside a method's own files, so that a later `--resume auto` never finds the old ones.
RUN_FILES = (
    CONFIG,
    "metrics.jsonl",
    "curves.png",
    LOG,
    "result.json",
    "backbone.safetensors",
    "packed.safetensors",
    *WEIGHTS,
    "sweep.csv",
    "sweep.png",
    "record.txt",
)


@functools.cache
def environment() -> dict[str, Any]:
    """What `config.json` records beside options: versions and the git hash of this source (None: not a checkout)."""
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in ("lowbit", "torch", "torchvision", "timm", "accelerate", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    here = Path(__file__).resolve()
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, capture_output=True, check=True
        )
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here.parent, capture_output=True, check=True, text=True)
        found["git"] = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["git"] = None
    return found


class _QuietFile(logging.FileHandler):
    """A log file on a full disk loses lines; the run itself says what is wrong, once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Nothing."""


class RunFolder:
    """A run's folder, held by one run at a time; leave it with `close` or a `with` block.

    Only the first process of a run opens one (`lowbit.train.process.on_main`), the others build it with `locked=False`
    and never write.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path | str, *, locked: bool = True, names: Names = NAMES) -> None:
        """Make the folder and take its lock.

        Args:
            path: the folder.
            locked: whether it is opened to be written to.
            names: of its checkpoints.

        Raises:
            InputError: another run holds it, or it cannot be made.
        """
        self.path, self.names = Path(path), names
        note_folder(self.path, names)
        self._lock: FolderLock | None = None
        self._log: logging.Handler | None = None
        self._before: set[str] | None = None  # names in a folder that held no run when it was opened
        self._made: list[Path] = []  # folders, the innermost first
        if locked:
            try:
                self._made = [at for at in (self.path, *self.path.parents) if not at.exists()]
                self.path.mkdir(parents=True, exist_ok=True)
                there = {found.name for found in self.path.iterdir()}
                self._lock = FolderLock(self.path)
                self._before = None if CONFIG in there else there
            except OSError as error:
                raise InputError(f"--output {path} cannot be used: {error.strerror}; name another folder") from error

    @staticmethod
    def check(
        path: Path | str,
        *,
        resume: bool | None = None,
        overwrite: bool = False,
        inputs: Sequence[Path | None] = (),
        files: Sequence[str] = (),
    ) -> None:
        """Refuse a folder that a run is writing to, that holds one (a `config.json`) or weights of another program.

        Writes nothing, for use before anything else; on several processes before the first one opens the folder.

        Args:
            path: the folder.
            resume: it may hold a run; None: the command never goes on with one.
            overwrite: it may hold a run, whose files are removed.
            inputs: files that the command reads, which may not be removed.
            files: patterns of the method's own files.

        Raises:
            InputError: another run is writing there; it holds a run and neither `resume` nor `overwrite` is given, or
                weights of another program that a training would replace; an input lies in a folder that is overwritten;
                see `check_place` and `check_files`.
        """
        path = Path(path)
        check_place(path)
        refuse_busy(path)
        check_files(path, (lock.NAME, *RUN_FILES, *files))
        RunFolder._refuse_held_run(path, resume, overwrite)
        for file in inputs if overwrite else ():
            if file is not None and path.resolve() in file.resolve().parents:
                raise InputError(f"--overwrite would remove {file}, which is read: give --output another folder")

    @staticmethod
    def _refuse_held_run(path: Path, resume: bool | None, overwrite: bool) -> None:
        if not (path / CONFIG).exists():
            if resume is False and not overwrite:
                check_weights(path, WEIGHTS)
            return
        if not (resume or overwrite):
            more = "" if resume is None else ", or, if it is this training, go on with --resume auto"
            raise InputError(f"--output {path} holds a run: start anew with --overwrite, name another folder{more}")
        if not _describes_a_run(path / CONFIG):
            raise InputError(
                f"--output {path}: its {CONFIG} describes no run of this program, which alone --overwrite and --resume "
                "replace: name another folder"
            )

    @classmethod
    def open(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        resume: bool | None = None,
        overwrite: bool = False,
        files: Sequence[str] = (),
        names: Names = NAMES,
    ) -> "RunFolder":
        """Check, lock, clear (with `overwrite` and not `resume`) and describe the folder in `config.json`.

        Args:
            path: the folder.
            config: every resolved option; `environment()` is added under that name.
            resume: as in `check`.
            overwrite: it may hold a run, whose files are removed.
            files: patterns of the method's own files, which are removed beside those that every run has.
            names: of its checkpoints.

        Raises:
            InputError: it may not be written to.
        """
        cls.check(path, resume=resume, overwrite=overwrite, files=files)
        folder = cls(path, names=names)
        try:
            cls._refuse_held_run(folder.path, resume, overwrite)  # another run may have been faster
            if resume:
                folder._check_command(config.get("command"))
            if overwrite and not resume:
                folder._clear(files)
            write_json(folder.path / CONFIG, {**config, "environment": environment()})
            folder._start_log()
        except BaseException:
            folder._withdraw()
            folder.close()
            raise
        return folder

    def _clear(self, files: Sequence[str]) -> None:
        """Remove the files of the run that is there; where none is, nothing."""
        if (self.path / CONFIG).exists():
            for pattern in (*RUN_FILES, *self.names, previous(Path(self.names.last)).as_posix(), *files):
                for file in self.path.glob(pattern):
                    file.unlink()
            self._before = {found.name for found in self.path.iterdir()}

    def _withdraw(self) -> None:
        """Leave a folder as it was before, if the run kept nothing there: neither a line of metrics nor another file.

        Folders of trackers stay.
        """
        if self._before is None or self._lock is None:
            return
        self._close_log()
        new = {found.name: found for found in self.path.iterdir() if found.name not in self._before}
        own = [new.pop(name) for name in (CONFIG, LOG) if name in new]
        fresh_lock = new.pop(lock.NAME, None) is not None
        if self.checkpoint.exists() or any(found.is_file() or (found / CONFIG).exists() for found in new.values()):
            return
        with contextlib.suppress(OSError):
            for file in own:
                file.unlink(missing_ok=True)
        self._lock.release(remove=fresh_lock)
        self._lock = None
        for made in self._made:
            with contextlib.suppress(OSError):  # not empty
                made.rmdir()

    def _check_command(self, command: Any) -> None:
        """Refuse to go on with the run of another command."""
        try:
            held = _read_config(self.path / CONFIG).get("command", command)
        except (OSError, ValueError, AttributeError, RecursionError):  # none yet, or torn: the checkpoint has to say
            return
        if held != command:
            raise InputError(f"--resume: {self.path} holds a run of {held!r}, not of {command!r}; name another folder")

    def _start_log(self) -> None:
        """Every log record of the process goes to `train.log` as well."""
        handler = _QuietFile(self.path / LOG, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        self._log = handler

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint's place."""
        return self.path / self.names.last

    @property
    def best(self) -> Path:
        """The selected checkpoint's place."""
        return self.path / self.names.best

    @property
    def metrics(self) -> Path:
        """The metrics file's place."""
        return self.path / "metrics.jsonl"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        note_figures(result)
        write_json(self.path / "result.json", dict(result))

    def close(self) -> None:
        """Release the lock and close `train.log`; twice is once."""
        self._close_log()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _close_log(self) -> None:
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            with contextlib.suppress(OSError):  # a full disk
                self._log.close()
            self._log = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Stopped):
            self._withdraw()
        self.close()


def _read_config(path: Path) -> Any:
    with open_regular(path) as file:
        return json.loads(file.read().decode("utf-8"))


def _describes_a_run(path: Path) -> bool:
    """Whether a `config.json` is a run's; a damaged one may be."""
    try:
        held = _read_config(path)
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(held, dict) and isinstance(held.get("environment"), dict)
