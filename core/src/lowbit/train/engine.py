"""One stage at work: its objective with optimizers and DDP, and the order of calls inside one batch.

DDP is made here and not by accelerate: with `find_unused_parameters=True` (heads alternate; and without it DDP rebuilds
its buckets after the first step, so that on three ranks and more a resumed run differs by 6e-8), without any broadcast
of buffers (batch norm and observers are local to their rank, and a queue of 65,536 x 128 costs 10 ms a step), and again
after a swap of parameters. Optimizers are not prepared either: prepared, two of them under fp16 are unscaled twice.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.train.compile import compile_
from lowbit.train.log import Meter
from lowbit.train.optimizer_state import load_optimizers
from lowbit.train.process import broadcast_
from lowbit.train.protocol import Clock, Objective, Pass, Stage
from lowbit.train.run import Run


def seed_global(clock: Clock, stream: str, device: torch.device) -> None:
    """Seed the global generators (dropout) of this rank from the clock. `torch.manual_seed` would cost 132 us."""
    seed = clock.key(stream, per_rank=True)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into contiguous parts whose shares add up to the batch's."""
    if parts == 1:
        return [batch]
    n = len(batch.index)
    cut = []
    for part in range(parts):
        here = slice(n * part // parts, n * (part + 1) // parts)
        share = batch.share * (here.stop - here.start) / n
        label = None if batch.label is None else batch.label[here]
        cut.append(Batch(tuple(view[here] for view in batch.views), batch.index[here], label, share))
    return cut


def wrap(objective: Objective, processes: int) -> nn.Module:
    """The objective under DDP, or itself on one process. What is `rebuilt` is equal on all ranks already."""
    if processes == 1:
        return objective
    broadcast_(parameter for name, parameter in objective.named_parameters() if not objective.is_rebuilt(name))
    buffers = "forward_sync_buffers"  # the name of torch 2.15; `broadcast_buffers` warns there
    if buffers not in inspect.signature(DistributedDataParallel).parameters:
        buffers = "broadcast_buffers"
    # DDP warns when a batch happens to use all parameters, which is allowed here
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(objective, find_unused_parameters=True, init_sync=False, **options)


class Engine:
    """Runs batches of one stage.

    Attributes:
        objective: the stage's, unwrapped.
        optimizers: by name.
    """

    def __init__(self, stage: Stage, run: Run, meter: Meter) -> None:
        self.objective = stage.objective
        self.rates = stage.lr
        self.run = run
        self.meter = meter
        self.accelerator = run.accelerator
        self.device = self.accelerator.device
        self.optimizers: dict[str, Optimizer] = {}
        self._module: nn.Module | None = None
        self._parameters: list[nn.Parameter] = []
        plain = self.accelerator.mixed_precision == "no"  # asking accelerate costs 20 us a pass
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext if plain else self.accelerator.autocast
        if run.compile:
            if not self.objective.compiled:
                raise InputError("--compile has nothing to work on in this method: leave it out")
            for name, dynamic in self.objective.compiled.items():
                compile_(self.objective.get_submodule(name), dynamic=dynamic)

    def build(self, optimizer_state: Mapping[str, Any] | None = None) -> None:
        """Make optimizers (and restore their state), then DDP; again after a swap of parameters."""
        self._module, self.optimizers, self._parameters = None, {}, []  # drops the old parameters and their states
        self.objective.to(self.device)
        self.optimizers = self.objective.optimizers()
        if optimizer_state is not None:
            load_optimizers(self.optimizers, optimizer_state)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                if group.get("schedule", name) not in self.rates:
                    raise ValueError(
                        f"no learning rate for {group.get('schedule', name)}: Stage.lr has {sorted(self.rates)}"
                    )
        self._parameters = list(self.objective.parameters())
        trained = [name for name, p in self.objective.named_parameters() if p.requires_grad]
        if any(map(self.objective.is_rebuilt, trained)):
            raise ValueError(f"{self.objective.rebuilt} are not in checkpoints: freeze them with requires_grad_(False)")
        self._module = wrap(self.objective, self.accelerator.num_processes)
        self._no_sync = getattr(self._module, "no_sync", nullcontext)
        self.objective.train()
        self._module.train()

    def learning_rates(self, clock: Clock) -> dict[str, float]:
        """The rates of this moment by schedule."""
        return {name: float(rate(clock)) for name, rate in self.rates.items()}

    def batch(self, batch: Batch, clock: Clock) -> None:
        """All passes of one batch, each with its backward and its optimizer steps, between the batch's hooks."""
        rates = self.learning_rates(clock)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[group.get("schedule", name)]
        if not self.objective.needs_labels and batch.label is not None:
            batch = batch._replace(label=None)
        parts = split(batch.to(self.device), self.run.accumulate)
        carries: list[Any] = [None] * len(parts)
        stepped = True
        self.objective.before_batch(clock)
        for number, pas in enumerate(self.objective.passes(clock)):
            if stepped:
                for parameter in self._parameters:
                    parameter.grad = None
            self._gradients(parts, clock, number, pas, carries)
            stepped = bool(pas.step)
            if stepped:
                self._step(clock, pas)
                self.objective.after_step(clock, pas)
        if not stepped:
            raise ValueError("the last pass of a batch has to step an optimizer: its gradients would be lost")
        self.objective.after_batch(clock, carries)

    def _gradients(self, parts: Sequence[Batch], clock: Clock, number: int, pas: Pass, carries: list[Any]) -> None:
        """Forward and backward of one pass for every part; ranks are reduced once, in the part before a step."""
        assert self._module is not None
        scaler = self.accelerator.scaler
        last = len(parts) - 1 if pas.step else len(parts)
        for number_of_part, part in enumerate(parts):
            now = clock._replace(micro=number_of_part) if number_of_part else clock
            seed_global(now, f"pass {number}", self.device)
            with nullcontext() if number_of_part == last else self._no_sync():
                with self._autocast():
                    out = self._module(part, now, pas, carries[number_of_part])
                loss: Tensor = out.loss if part.share == 1.0 else out.loss * part.share
                (loss if scaler is None else scaler.scale(loss)).backward()
            carries[number_of_part] = out.carry
            pictures = float(len(part.index))
            self.meter.add("loss", out.loss, pictures)
            for name, value in out.parts.items():
                self.meter.add(name, value, pictures)

    def _step(self, clock: Clock, pas: Pass) -> None:
        """Unscale all, `before_step`, clip all together, step each, then one update of the scale."""
        scaler = self.accelerator.scaler
        stepping = [self.optimizers[name] for name in pas.step]
        if scaler is not None:
            for optimizer in stepping:
                scaler.unscale_(optimizer)
        self.objective.before_step(clock, pas)
        if self.run.clip_grad is not None:
            clipped = [p for optimizer in stepping for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(clipped, self.run.clip_grad)
        for optimizer in stepping:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
