"""Three iterations of three widths through the loop's own engine, in float64, against traces of the original program.

The recorded runs are three passes (1.0, 0.6, 0.25) in epoch 300 of 400, each with its own optimizer step. Each takes
many seconds here, so the ordinary tests do one pass.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.data.batch import Batch
from lowbit.train.engine import Engine
from lowbit.train.log import Meter
from lowbit.train.process import make_accelerator
from lowbit.train.protocol import Clock, Out, Pass, Stage
from lowbit.train.run import Run
from lowbit.train.schedule import constant
from us3l.config import Config
from us3l.methods import build
from us3l.objective import UniversallySlimmable
from us3l.sampling import Sampling

RUNS = [
    "simclr_wd0", "simclr_wd1e-4", "simclr_wd1e-4_zerograd", "simclr_group", "simclr_group_zerograd",
    "simclr_nce_wd1e-4", "simclr_lr0", "byol_wd0", "byol_wd1e-4", "byol_wd1e-4_zerograd", "byol_group",
    "byol_group_zerograd", "byol_lr0",
]  # fmt: skip
GROUP = {
    "REGULARIZER": True, "REGULARIZER_CRITERION": "GroupReg", "REGULARIZER_LAMBDA": 5e-5,
    "REGULARIZER_DECAY_ALPHA": 0.05, "REGULARIZER_DECAY_TYPE": "linear", "REGULARIZER_DECAY_BINS": 8,
}  # fmt: skip
CLOCK = Clock(0, 300, 400, 0, 3, seed=0)


def objective_of(run: str, recorded: Any) -> UniversallySlimmable:
    """The shipped objective of a recorded run with its weights, the copy's own included."""
    kind = "simclr" if run.startswith("simclr") else "byol"
    decay = 0.0 if "wd0" in run else 1e-4  # with the group regularization it is left out
    distill = "InfoNCEv2_distill" if "nce" in run else "CosineSimilarity"
    ofa = {"NUM_SAMPLE_TRAINING": 3, "MOMENTUM_UPDATE": False, "DISTILL_CRITERION": distill}
    config = Config.model_validate({
        "MODEL": {"ARCH": "us_cifar_resnet18", "OFA": ofa | (GROUP if "group" in run else {})},
        "TRAIN": {"OPTIMIZER": {"MOMENTUM": 0.9, "WEIGHT_DECAY": decay}, "LR_SCHEDULER": {"BASE_LR": 0.05}},
        "SSL": {
            "TYPE": {"simclr": "SimCLR_Momentum", "byol": "BYOL"}[kind],
            "SETTING": {"DIM": 64, "HIDDEN_DIM": 64, "T": 0.5, "MOMENTUM": 0.99},
        },
    })  # fmt: skip
    objective = build(config, (3, 32, 32))
    values = recorded.fill({"simclr": "train_simclr_momentum_dim64", "byol": "train_byol_dim64"}[kind])
    missing, unexpected = objective.load_state_dict({k.removeprefix("module."): v for k, v in values.items()}, False)
    assert not unexpected and not set(missing) & dict(objective.named_parameters()).keys()
    objective.plan = replace(objective.plan, sampling=Sampling(fixed=(1.0, 0.6, 0.25)))
    return objective


class Trace:
    """Iterations of a run and what the recording has of each pass."""

    def __init__(self, run: str, recorded: Any, dtype: torch.dtype = torch.float64) -> None:
        self.run, self.recorded, self.rec, self.dtype = run, recorded, recorded["training"], dtype
        self.objective = objective_of(run, recorded).to(dtype)
        self.names: dict[str, list[str]] = recorded.json("training_names")[re.split("_", run)[0]]
        self.start = {name: p.detach().clone() for name, p in self.objective.named_parameters()}
        self.losses: list[float] = []
        self.terms: list[float] = []
        self.grads: list[list[float]] = []
        self.used: set[str] = set()
        self.objective.register_forward_hook(self._forward)
        if run.endswith("zerograd"):
            before_step = self.objective.before_step

            def with_zeros(clock: Clock, pas: Pass) -> None:
                """As torch 1.10 had it: what once had a gradient keeps one, of zeros."""
                for name, p in self.objective.named_parameters():
                    if p.grad is not None:
                        self.used.add(name)
                    elif name in self.used:
                        p.grad = torch.zeros_like(p)
                before_step(clock, pas)

            self.objective.before_step = with_zeros  # type: ignore[method-assign]
        lr = 0.0 if "lr0" in run else 0.05
        stage = Stage(self.objective, 400, {"main": constant(lr)})
        self.engine = Engine(stage, Run(accelerator=make_accelerator("no", cpu=True)), Meter())
        self.engine.build()
        self.engine.optimizers["main"].register_step_pre_hook(lambda *args: self._step())

    def _forward(self, module: Any, args: Sequence[Any], out: Out) -> None:
        self.losses.append(out.loss.item())
        if self.objective.plan.decay is not None:
            self.terms.append(self._term(args[2].variant.width))

    def _term(self, width: float) -> float:
        """The original's regularization of a pass, block by block."""
        assert self.objective.plan.decay is not None
        lambdas, total = self.objective.plan.decay.lambdas(300, 400), 0.0
        for name, p in self.objective.named_parameters():
            if name.startswith("encoder_k") or (name.startswith("predictor") and width == 1.0):
                continue
            size = len(p) // 8
            blocks = p.detach().tensor_split([size * i for i in range(1, 8)])
            weights = lambdas if p.dim() in (1, 4) else (5e-5,) * 8
            total += sum(weight * block.square().sum().item() for weight, block in zip(weights, blocks, strict=True))
        return total

    def _step(self) -> None:
        parameters = dict(self.objective.named_parameters())
        gradients = [parameters[name].grad for name in self.names["named"]]
        self.grads.append([float("nan") if g is None else g.norm().item() for g in gradients])

    def step(self, iteration: int) -> None:
        """Iteration t has views with s = t + .2 and t + .7."""
        x1, x2 = (self.recorded.pictures((8, 3, 32, 32), iteration + s).to(self.dtype) for s in (0.2, 0.7))
        self.engine.batch(Batch((x1, x2), torch.arange(8)), CLOCK._replace(step=iteration, done=iteration))

    def close(self, name: str, ours: Any, theirs: Tensor, limit: float = 1e-8) -> None:
        found = torch.tensor(ours, dtype=torch.float64)
        assert found.shape == theirs.shape, name
        error = (found - theirs).abs() / theirs.abs().clamp_min(1.0)
        assert torch.equal(found.isnan(), theirs.isnan()), name
        assert error.nan_to_num().max() <= limit, f"{self.run} {name}: {error.max():.1e}"

    def check(self, t: int) -> None:
        """Losses, gradients, weights, copy and batch norm of the projector after iteration t."""
        rec = {key.rpartition("/")[2]: value for key, value in self.rec.items() if key.startswith(f"{self.run}/f64/")}
        parameters = {name: p.detach() for name, p in self.objective.named_parameters()}
        named, copied = self.names["named"], self.names["ema_named"]
        self.close("loss", self.losses[-3:], rec["loss"][t])
        self.close("grad_norm", self.grads[-3:], rec["grad_norm"][t])
        if "reg" in rec:
            self.close("reg", self.terms[-3:], rec["reg"][t])
        self.close("norm", [parameters[name].norm().item() for name in named], rec["norm"][t + 1])
        moved = [(parameters[name] - self.start[name]).norm().item() for name in named]
        self.close("delta", moved, rec["delta"][t + 1])
        self.close("head", [parameters[name].flatten()[:4].tolist() for name in named], rec["head"][t + 1])
        self.close("ema_norm", [parameters[name].norm().item() for name in copied], rec["ema_norm"][t + 1])
        for name, which in (("ema_total", "encoder_k."), ("q_total", "encoder_q.")):
            total = sum(p.square().sum().item() for key, p in parameters.items() if key.startswith(which)) ** 0.5
            self.close(name, total, rec[name][t + 1])
        for name, encoder in (("bn1d_q", "encoder_q"), ("bn1d_k", "encoder_k")):
            norm: Any = self.objective.get_submodule(f"{encoder}.fc.1")
            state = norm.running_mean.norm().item(), norm.running_var.norm().item(), norm.num_batches_tracked.item()
            self.close(name, state, rec[name][t + 1])


def test_first_pass(recorded: Any) -> None:
    """In float32, at full width alone; within the recording's own distance from float64."""
    trace = Trace("byol_group", recorded, torch.float32)
    trace.objective.plan = replace(trace.objective.plan, sampling=Sampling(fixed=(1.0,)))
    trace.step(0)
    rec = {name: trace.rec[f"byol_group/f64/{name}"][0, :1] for name in ("loss", "reg", "grad_norm")}
    trace.close("loss", trace.losses, rec["loss"], 5e-6)
    trace.close("reg", trace.terms, rec["reg"], 1e-6)
    trace.close("grad_norm", trace.grads, rec["grad_norm"], 6e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("run", RUNS)
def test_three_iterations(recorded: Any, run: str) -> None:
    trace = Trace(run, recorded)
    for iteration in range(3):
        trace.step(iteration)
        trace.check(iteration)


def test_all_recorded_runs_are_compared(recorded: Any) -> None:
    assert {key.partition("/")[0] for key in recorded["training"] if "/f64/" in key} == set(RUNS)
