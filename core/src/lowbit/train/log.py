"""What a run says to programs: running means, `metrics.jsonl`, trackers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lowbit.metrics import MetricsFile


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
        """Add one scalar; `weight` is the number of pictures that it is a mean over."""
        entry = self.recent.get(name)
        if entry is None:
            entry = self.recent[name] = ([], [])
        entry[0].append(value.detach())
        entry[1].append(weight)

    def latest(self, name: str) -> float | None:
        """The scalar that was added last, of this process, since the last `read`; waits for the device."""
        values = self.recent[name][0] if name in self.recent else []
        return values[-1].item() if values else None

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

    def __init__(self, accelerator: Accelerator, metrics: Path | None) -> None:
        self.accelerator = accelerator
        self.file = MetricsFile(metrics if accelerator.is_main_process else None)

    def line(self, line: Mapping[str, Any]) -> None:
        """Write one line of metrics, to the file and the trackers."""
        self.file.write(line)
        if self.accelerator.trackers:
            event = line["event"]
            rates = (
                {f"lr/{name}": rate for name, rate in line["lr"].items()} if isinstance(line.get("lr"), dict) else {}
            )
            values = {f"{event}/{k}": v for k, v in {**line, **rates}.items() if isinstance(v, int | float)}
            self.accelerator.log(values, step=line["step"])
