"""The folder of a run: its files, and whether it may be written to."""

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from lowbit.checkpoint.write import BEST, CHECKPOINT
from lowbit.errors import InputError
from lowbit.files import write_json
from lowbit.train.lock import FolderLock, refuse_busy

# What `--overwrite` removes beside a method's own files, so that a later `--resume auto` never finds the old ones.
RUN_FILES = (
    "config.json",
    "metrics.jsonl",
    "train.log",
    "result.json",
    "backbone.safetensors",
    "packed.safetensors",
    "*.pth.tar",
    "sweep.csv",
    "sweep.png",
    "record.txt",
)


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

    def __init__(self, path: Path | str, *, locked: bool = True) -> None:
        """Make the folder and take its lock.

        Raises:
            InputError: another run holds it, or it cannot be made.
        """
        self.path = Path(path)
        self._lock: FolderLock | None = None
        self._log: logging.Handler | None = None
        if locked:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = FolderLock(self.path)
            except OSError as error:
                raise InputError(f"--output {path} cannot be used: {error.strerror}; name another folder") from error

    @staticmethod
    def check(
        path: Path | str, *, resume: bool | None = None, overwrite: bool = False, inputs: Sequence[Path | None] = ()
    ) -> None:
        """Refuse a folder that a run is writing to, or that holds one (a `config.json`).

        Writes nothing, for use before anything else; on several processes before the first one opens the folder.

        Args:
            path: the folder.
            resume: it may hold a run; None: the command never goes on with one.
            overwrite: it may hold a run, whose files are removed.
            inputs: files that the command reads, which may not be removed.

        Raises:
            InputError: another run is writing there; it holds a run and neither `resume` nor `overwrite` is given; an
                input lies in a folder that is overwritten; it is a file.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"--output {path} is a file: name a folder")
        refuse_busy(path)
        RunFolder._refuse_held_run(path, resume, overwrite)
        for file in inputs if overwrite else ():
            if file is not None and path.resolve() in file.resolve().parents:
                raise InputError(f"--overwrite would remove {file}, which is read: give --output another folder")

    @staticmethod
    def _refuse_held_run(path: Path, resume: bool | None, overwrite: bool) -> None:
        if (path / "config.json").exists() and not (resume or overwrite):
            more = "" if resume is None else ", or, if it is this training, go on with --resume auto"
            raise InputError(f"--output {path} holds a run: start anew with --overwrite, name another folder{more}")

    @classmethod
    def open(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        resume: bool | None = None,
        overwrite: bool = False,
        files: Sequence[str] = (),
    ) -> "RunFolder":
        """Check, lock, clear (with `overwrite` and not `resume`) and describe the folder in `config.json`.

        Args:
            path: the folder.
            config: every resolved option; `environment()` is added under that name.
            resume: as in `check`.
            overwrite: it may hold a run, whose files are removed.
            files: patterns of the method's own files, which are removed beside those that every run has.

        Raises:
            InputError: it may not be written to.
        """
        cls.check(path, resume=resume, overwrite=overwrite)
        folder = cls(path)
        try:
            cls._refuse_held_run(folder.path, resume, overwrite)  # another run may have been faster
            if resume:
                folder._check_command(config.get("command"))
            if overwrite and not resume:
                for pattern in (*RUN_FILES, *files):
                    for file in folder.path.glob(pattern):
                        file.unlink()
            write_json(folder.path / "config.json", {**config, "environment": environment()})
            folder._start_log()
        except BaseException:
            folder.close()
            raise
        return folder

    def _check_command(self, command: Any) -> None:
        """Refuse to go on with the run of another command."""
        try:
            held = json.loads((self.path / "config.json").read_text(encoding="utf-8")).get("command", command)
        except (OSError, ValueError, AttributeError):  # none yet, or torn: the checkpoint has to say
            return
        if held != command:
            raise InputError(f"--resume: {self.path} holds a run of {held!r}, not of {command!r}; name another folder")

    def _start_log(self) -> None:
        """Every log record of the process goes to `train.log` as well."""
        handler = _QuietFile(self.path / "train.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        self._log = handler

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint's place."""
        return self.path / CHECKPOINT

    @property
    def best(self) -> Path:
        """The selected checkpoint's place."""
        return self.path / BEST

    @property
    def metrics(self) -> Path:
        """The metrics file's place."""
        return self.path / "metrics.jsonl"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        write_json(self.path / "result.json", dict(result))

    def close(self) -> None:
        """Release the lock and close `train.log`; twice is once."""
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            with contextlib.suppress(OSError):  # a full disk
                self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
