"""`metrics.jsonl`: what a run measured, one JSON object a line, for programs (no torch here)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.errors import InputError
from lowbit.files import finite, open_regular, replace_file

WORDS = {"knn": "k-NN", "top1": "top-1", "top5": "top-5", "val": "held-out", "bn": "with batch norm re-estimated"}


def words(key: str) -> str:
    """A figure's key as people write it: `knn_top1` -> "k-NN top-1"."""
    return " ".join(WORDS.get(part, part) for part in key.split("_"))


def number(value: Any) -> float | None:
    """A value of a line as a number; None: it is none, or not finite."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if real else None


def accuracies(line: Mapping[str, Any]) -> dict[str, float]:
    """Those top-1 accuracies of a line that are numbers, in percent."""
    found = {key: number(value) for key, value in line.items() if "top1" in key.split("_")}
    return {key: value for key, value in found.items() if value is not None}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a `metrics.jsonl` up to one that is damaged, such as a last line torn by a kill; none of no file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            texts = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; name the folder of a run") from error
    lines: list[dict[str, Any]] = []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


class MetricsFile:
    """`metrics.jsonl`, one object a line, written through; a checkpoint holds the number of its lines.

    Attributes:
        lines: lines written by this run so far.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines = 0

    def cut(self, lines: int) -> None:
        """Keep the first `lines` lines (those that the checkpoint knew), so that no line stands twice."""
        self.lines = 0
        if self.path is not None and self.path.exists():
            try:
                kept = self.path.read_bytes().splitlines(keepends=True)[:lines]
            except OSError as error:
                raise InputError(f"{self.path} cannot be read: {error.strerror}; move it away, then resume") from error
            replace_file(self.path, b"".join(kept))
            self.lines = len(kept)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            InputError: the disk is full.
        """
        self.lines += 1
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(finite(line), allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; make room, then go on with --resume auto"
            ) from error
