"""Whole steps of the shipped objectives, through the loop's own engine, against five recorded steps of the original."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.losses.contrastive import info_nce, nt_xent
from lowbit.losses.cosine import cosine_loss
from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.models.create import create_model
from lowbit.models.heads import build_heads
from lowbit.quant.bitwidths import quantize_uniform_
from lowbit.quant.uniform import WeightConfig
from lowbit.train.engine import Engine
from lowbit.train.log import Meter
from lowbit.train.process import make_accelerator
from lowbit.train.protocol import Clock, Out, Stage
from lowbit.train.run import Run
from lowbit.train.schedule import constant
from ssql.bit_policy import derive_policy
from ssql.config import Config, read_config
from ssql.methods import plan_of
from ssql.objective import Contrastive, Drawing, MomentumContrast, SelfSupervised, Siamese
from ssql.optim import optimizer, rates

RUNS = [
    "simsiam", "ssql_simsiam_w4a4", "ssql_simsiam_w2a8", "ssql_simsiam_w4a4_detached", "byol", "ssql_byol_w4a4",
    "ssql_byol_w2a8", "simclr", "moco", "ssql_moco_w4a4",
]  # fmt: skip
KINDS = {"simsiam": "SimSiam", "byol": "BYOL", "simclr": "SimCLR", "moco": "MoCo"}
STEP_1 = 3e-6  # of an array's maximum, with any kernels
LATER = {"equal": 3e-7, "float": 3e-6, "quantized": 4e-2}  # step 1 equal to the last bit; else codes may flip


def kind_of(run: str) -> str:
    ssql, method = re.fullmatch(r"(ssql_)?([a-z]+)(_w\da\d.*)?", run).groups()[:2]  # type: ignore[union-attr]
    return ("SSQL_" if ssql else "") + KINDS[method]


def objective_of(run: str, recorded: Any, layout: str, fill: str) -> SelfSupervised:
    """The shipped objective of a recorded run, at its bits and with its weights, the target encoder's own included."""
    settings, kind = recorded.settings, kind_of(run)
    dims, base = settings["ssl_dims"][layout], run.partition("_w")[0]
    tiny = layout == "tiny"
    encoder = (
        WideCifarResNet(BasicBlock, (1, 1), widths=(8, 16), num_classes=0)
        if tiny
        else create_model("cifar_resnet18", num_classes=0)
    )
    heads = build_heads(plan_of(kind), 16 if tiny else 512, dims["DIM"], dims["HIDDEN_DIM"])
    encoder.fc = heads.projector
    drawing = None
    if kind.startswith("SSQL"):
        w, a = (int(n) for n in re.search(r"_w(\d)a(\d)", run).groups())  # type: ignore[union-attr]
        drawing = Drawing((w, w + 1), (a, a + 1))
        weight = WeightConfig(differentiable_scale="detached" not in run)
        quantize_uniform_(encoder, derive_policy(encoder, (3, 8, 8) if tiny else (3, 32, 32)), weight)
    sgd = settings["sgd"]
    options = {"MOMENTUM": sgd["momentum"], "WEIGHT_DECAY": sgd["weight_decay"]}
    config = Config(TRAIN={"OPTIMIZER": options, "LR_SCHEDULER": {"BASE_LR": sgd["lr"]}})  # type: ignore[arg-type]
    momentum, temperature = settings["ema_momentum"].get(base), settings["temperature"].get(base)
    objective: SelfSupervised
    if kind.endswith("SimCLR"):
        objective = Contrastive(encoder, partial(optimizer, config, command="ssl"), drawing, temperature=temperature)
    elif kind.endswith("MoCo"):
        objective = MomentumContrast(
            encoder, partial(optimizer, config, command="ssl"), drawing, dim=dims["DIM"], length=dims["MOCO_K"],
            temperature=temperature, momentum=momentum, generator=torch.Generator(),
        )  # fmt: skip
    else:
        assert heads.predictor is not None
        objective = Siamese(
            encoder, heads.predictor, partial(optimizer, config, command="ssl"), drawing, momentum=momentum
        )
    order = recorded.json("keys")["ssl_fill_order"][layout][kind]
    values = dict(recorded.fill([(key, shape) for key, shape in order], fill))
    ours = {re.sub("^queue", "keys.queue", key): value for key, value in values.items()}
    missing, unexpected = objective.load_state_dict(ours, strict=False)
    assert not unexpected and all(".observer." in key for key in missing)
    return objective


class Steps:
    """Batches of a run through the engine, and what can be seen of them from outside."""

    def __init__(self, objective: SelfSupervised, views: tuple[Tensor, Tensor], lr: float) -> None:
        self.objective = objective
        self.batch = Batch(views, torch.arange(len(views[0])))
        stage = Stage(objective, 1, {"main": constant(lr), "fixed": constant(lr)})
        self.engine = Engine(stage, Run(accelerator=make_accelerator("no", cpu=True)), Meter())
        self.engine.build()
        self.done = 0
        self.losses: list[Tensor] = []
        self.parts: Mapping[str, Tensor] = {}
        self.seen: dict[str, list[Tensor]] = {}
        objective.register_forward_hook(self._keep)
        for name in ("encoder_q", "encoder_k", "predictor"):
            if hasattr(objective, name):
                self.seen[name] = []
                objective.get_submodule(name).register_forward_hook(partial(self._see, name))

    def _keep(self, module: nn.Module, args: Any, out: Out) -> None:
        self.losses.append(out.loss.detach())
        self.parts = out.parts

    def _see(self, name: str, module: nn.Module, args: Any, out: Tensor) -> None:
        self.seen[name].append(out.detach())

    def go(self) -> None:
        """One more batch."""
        for outputs in self.seen.values():
            outputs.clear()
        self.engine.batch(self.batch, Clock(0, 0, 1, self.done, 5, seed=1, done=self.done))
        self.done += 1

    def flat(self, names: list[str], grads: bool = False) -> Tensor:
        tensors = dict(self.objective.named_parameters())
        picked = [tensors[name].grad if grads else tensors[name].detach() for name in names]
        return torch.cat([t.flatten() for t in picked if t is not None])


Against = Callable[[str, Tensor, float], None]


def against(rec: Mapping[str, Tensor], run: str) -> Against:
    """Compare with an array of the run, relative to its maximum."""

    def check(name: str, ours: Tensor, limit: float) -> None:
        theirs = rec[f"{run}_{name}"].to(torch.float32)
        assert ours.shape == theirs.shape, name
        error = (ours.float() - theirs).abs().max().item() / theirs.abs().max().item()
        assert error <= limit, f"{run} {name}: {error:.1e}"

    return check


def check_step_1(steps: Steps, rec: Mapping[str, Tensor], run: str, facts: Any, kind: str) -> None:
    check, seen, parts = against(rec, run), steps.seen, steps.parts
    pred, target = rec[f"{run}_pred"], rec.get(f"{run}_target")
    if "predictor" in seen:
        assert target is not None
        check("pred", torch.stack(seen["predictor"]), STEP_1)
        check("target", torch.stack(seen.get("encoder_k", seen["encoder_q"])[:2]), STEP_1)
        branches = [cosine_loss((p1, p2), (target[0], target[1])) for p1, p2 in zip(pred[::2], pred[1::2], strict=True)]
    elif kind == "SimCLR":
        for name, z in zip(("pred", "target"), seen["encoder_q"], strict=True):
            check(name, F.normalize(z, dim=1), STEP_1)
        assert target is not None
        temperature = steps.objective.temperature
        assert isinstance(temperature, float)
        branches = [nt_xent(pred, target, temperature)]
    else:
        branches = [info_nce(logits) for logits in pred.view(-1, *pred.shape[-2:]).flip(0)]  # recorded: float last
    assert steps.losses[0].item() == pytest.approx(torch.stack(branches).mean().item(), abs=1e-6)
    if len(branches) == 2:
        assert [parts["float"].item(), parts["quantized"].item()] == pytest.approx([b.item() for b in branches], 1e-5)
    names = facts["grad_params"]["tiny"][kind]
    norms = torch.stack([steps.flat([name], grads=True).norm() for name in names])
    check("grads", steps.flat(names, grads=True), STEP_1)
    check("grad_norms", norms, STEP_1)
    check("grad_norm_all", norms.norm(), STEP_1)
    check("params_after1", steps.flat(names), STEP_1)
    trained = {name for name, p in steps.objective.named_parameters() if p.grad is not None}
    assert trained == set(names), "nothing else is trained"
    layers = facts["bn_layers"]["tiny"][kind]
    norm_layers: dict[str, Any] = {name: steps.objective.get_submodule(name) for name in layers}
    for name, norm in norm_layers.items():
        check(f"bn_{name}_mean", norm.running_mean, STEP_1)
        check(f"bn_{name}_var", norm.running_var, STEP_1)
    tracked = [int(norm.num_batches_tracked) for norm in norm_layers.values()]
    assert tracked == rec[f"{run}_bn_tracked"].tolist()


def check_state(steps: Steps, check: Against, step: int, limit: float) -> None:
    """The target encoder and the queue after a step."""
    objective = steps.objective
    if "encoder_k" in steps.seen:
        encoder: Any = objective.encoder_k
        check(f"ema_conv1_step{step}", encoder.conv1.weight, limit)
        check(f"ema_bn1_mean_step{step}", encoder.bn1.running_mean, limit)
    if isinstance(objective, MomentumContrast):
        check(f"queue_step{step}", objective.keys.queue, limit)
        check(f"queue_ptr_step{step}", objective.keys.queue_ptr[0], 0.0)


@pytest.mark.parametrize("run", RUNS)
def test_five_steps(recorded: Any, run: str) -> None:
    rec, facts, kind = recorded["ssl_tiny"], recorded.json("ssl_steps"), kind_of(run)
    name = f"tiny_mix_{run}"
    objective = objective_of(run, recorded, "tiny", "mix")
    views = recorded.pictures("view1", 8), recorded.pictures("view2", 8)
    steps, check = Steps(objective, views, recorded.settings["sgd"]["lr"]), against(rec, name)
    steps.go()
    check_step_1(steps, rec, name, facts, kind)
    check_state(steps, check, 1, STEP_1)
    names = facts["grad_params"]["tiny"][kind]
    equal = torch.equal(steps.flat(names, grads=True), rec[f"{name}_grads"])
    later = LATER["equal" if equal else "quantized" if objective.drawing else "float"]
    for _ in range(4):
        steps.go()
    check("losses", torch.stack(steps.losses), later)
    check("params_after5", steps.flat(names), later)
    check_state(steps, check, 5, later)


def test_all_recorded_runs_are_compared(recorded: Any) -> None:
    found = {key.removeprefix("tiny_mix_").removesuffix("_losses") for key in recorded["ssl_tiny"] if "_losses" in key}
    assert found == set(RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("fill", ["mix", "sin"])
@pytest.mark.parametrize("run", RUNS)
def test_first_loss_of_resnet18(recorded: Any, run: str, fill: str) -> None:
    """Wide limits for quantized runs: with other kernels codes flip."""
    file = f"ssl_r18_{fill}"
    if not (recorded.folder / f"{file}.npz").exists():
        pytest.skip(f"{file}.npz is not here: LOWBIT_GOLDEN names the folder of the whole recording")
    rec = recorded[file]
    if f"r18_{fill}_{run}_losses" not in rec:
        pytest.skip("not recorded")
    objective = objective_of(run, recorded, "r18", fill)
    steps = Steps(objective, (recorded.pictures("view1"), recorded.pictures("view2")), 0.05)
    steps.go()
    limit = {"mix": 3e-2, "sin": 7e-2}[fill] if objective.drawing else 4e-6
    theirs = rec[f"r18_{fill}_{run}_losses"]
    assert abs(steps.losses[0] - theirs[0]).item() <= limit * max(1.0, theirs.abs().max().item())


def test_learning_rates(recorded: Any) -> None:
    schedules = {name: s for name, s in recorded.json("schedule").items() if name.startswith("ssl_")}
    assert schedules
    for schedule in schedules.values():
        config = read_config("ssl", schedule["config"])
        assert (schedule["base_lr"], schedule["epochs"]) == (config.TRAIN.LR_SCHEDULER.BASE_LR, config.TRAIN.EPOCHS)
        rate = rates(config, "ssl")
        for epoch, lr in enumerate(schedule["lr"]):
            for step in (0, 6):
                clock = Clock(0, epoch, schedule["epochs"], step, 7, seed=0)
                assert math.isclose(rate["main"](clock), lr, rel_tol=1e-9, abs_tol=1e-15)
                assert rate["fixed"](clock) == schedule["base_lr"]
