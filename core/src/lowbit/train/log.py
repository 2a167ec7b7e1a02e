"""What a run says: running means, `metrics.jsonl`, a progress bar on stderr, trackers."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit.metrics import MetricsFile

log = logging.getLogger(__name__)


class Meter:
    """Weighted means of scalars since the last `read`, and since the epoch began.

    A step only appends detached scalars, so that nothing waits for the device; the sums are made, in float64, when a
    line is due. `state` holds the scalars themselves, so that saving at any moment changes no later mean.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.recent: dict[str, tuple[list[Tensor], list[float]]] = {}
        self.epoch: dict[str, tuple[float, float]] = {}  # weighted sum and weight, of all ranks

    def add(self, name: str, value: Tensor, weight: float) -> None:
        """Add one scalar; `weight` is its batch's `share`."""
        entry = self.recent.get(name)
        if entry is None:
            entry = self.recent[name] = ([], [])
        entry[0].append(value.detach())
        entry[1].append(weight)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks since the last call, which also enter the epoch's; the same names on every rank."""
        names = sorted(self.recent)
        if not names:
            return {}
        pairs = []
        for name in names:
            values, weights = self.recent[name]
            numbers = torch.stack(values).tolist() if values else []
            pairs.append((sum(v * w for v, w in zip(numbers, weights, strict=True)), sum(weights)))
        if accelerator.num_processes > 1:
            sums = torch.tensor(pairs, dtype=torch.float64, device=accelerator.device)
            pairs = accelerator.reduce(sums, "sum").tolist()
        self.recent.clear()
        for name, (total, weight) in zip(names, pairs, strict=True):
            before = self.epoch.get(name, (0.0, 0.0))
            self.epoch[name] = (before[0] + total, before[1] + weight)
        return {name: total / weight for name, (total, weight) in zip(names, pairs, strict=True)}

    def read_epoch(self) -> dict[str, float]:
        """Means since the epoch began, which starts again; call `read` first."""
        means = {name: total / weight for name, (total, weight) in self.epoch.items()}
        self.epoch.clear()
        return means

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint (`recent` differs by rank)."""
        recent = {name: [torch.stack(v).cpu() if v else torch.zeros(0), w[:]] for name, (v, w) in self.recent.items()}
        return {"recent": recent, "epoch": {name: list(pair) for name, pair in self.epoch.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.recent = {name: (list(v.to(self.device)), list(w)) for name, (v, w) in state["recent"].items()}
        self.epoch = {name: (pair[0], pair[1]) for name, pair in state["epoch"].items()}


class Reporter:
    """Sends each line where it belongs; only the first process writes, all of them count the lines alike."""

    def __init__(self, accelerator: Accelerator, metrics: Path | None, total_steps: int) -> None:
        self.accelerator = accelerator
        self.file = MetricsFile(metrics if accelerator.is_main_process else None)
        self.total_steps = total_steps
        self.bar: tqdm[Any] | None = None

    def start(self, done: int) -> None:
        """Show the bar, on a terminal alone, from `done` steps on."""
        if self.accelerator.is_main_process:
            self.bar = tqdm(total=self.total_steps, initial=done, unit="step", dynamic_ncols=True, disable=None)

    def advance(self) -> None:
        """One step more."""
        if self.bar is not None:
            try:
                self.bar.update()
            except OSError:  # the terminal is gone
                self.bar.disable = True

    def line(self, line: Mapping[str, Any]) -> None:
        """Write one line of metrics, to the file, the log and the trackers."""
        self.file.write(line)
        if self.accelerator.is_main_process:
            plain = [(k, v) for k, v in line.items() if not isinstance(v, dict | list)]  # widths are for the file
            shown = ", ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain)
            log.info(shown)
        if self.accelerator.trackers:
            event = line["event"]
            rates = (
                {f"lr/{name}": rate for name, rate in line["lr"].items()} if isinstance(line.get("lr"), dict) else {}
            )
            values = {f"{event}/{k}": v for k, v in {**line, **rates}.items() if isinstance(v, int | float)}
            self.accelerator.log(values, step=line["step"])

    def close(self) -> None:
        """Leave the terminal in order."""
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.close()
            self.bar = None
