"""Toy objectives, each with a demand that a paper makes of the loop; not a test itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from lowbit.data.batch import Batch
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.protocol import Clock, Objective, Out, Pass, Stage
from lowbit.train.schedule import constant, cosine, milestones

WIDTH = 6


def trunk(bn: bool | str, dropout: float) -> nn.Sequential:
    """(B, 3, 8, 8) -> (B, WIDTH). Batch norm over ranks, or "local" to each, or none.

    A convolution bias before batch norm would make float32 ill-conditioned.
    """
    layers: list[nn.Module] = []
    for inputs in (3, WIDTH):
        layers += [nn.Conv2d(inputs, WIDTH, 3, stride=2, bias=not bn), nn.BatchNorm2d(WIDTH) if bn else nn.Identity()]
        layers.append(nn.Tanh())
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
    return net if bn == "local" else sync_batchnorm_(net)


def sgd(*modules: nn.Module) -> SGD:
    parameters = [p for module in modules for p in module.parameters()]
    return SGD(parameters, lr=1.0, momentum=0.9, weight_decay=1e-3)


@torch.no_grad()
def follow(copy: nn.Module, of: nn.Module, momentum: float = 0.9) -> None:
    for mine, theirs in zip(copy.parameters(), of.parameters(), strict=True):
        mine.lerp_(theirs, 1 - momentum)


class Heads(Objective):
    """Three optimizer steps a batch: heads by role, one pass that does not step, the teacher's output carried over.

    What is added to the gradients before a step is no linear function of them, and another one for each pass.
    """

    frozen = ("teacher",)

    def __init__(self, bn: bool | str, dropout: float) -> None:
        super().__init__()
        self.trunk, self.teacher = trunk(bn, dropout), trunk(bn, 0.0).requires_grad_(False)
        self.heads = nn.ModuleDict({role: nn.Linear(WIDTH, WIDTH) for role in ("wide", "middle", "low", "narrow")})

    def optimizers(self) -> dict[str, Optimizer]:
        return {"main": sgd(self.trunk, self.heads)}

    def passes(self, clock: Clock) -> Sequence[Pass]:
        width = int(torch.randint(2, WIDTH, (), generator=clock.generator("width")))  # the same on all ranks
        return Pass(("wide", WIDTH)), Pass(("middle", width)), Pass(("low", 1), step=()), Pass(("narrow", 2))

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        role, width = pas.variant
        x = batch.views[0]
        target = self.teacher(x).detach() + 0.5 if carry is None else carry
        features = self.trunk(x)
        features = features * (torch.arange(WIDTH, device=x.device) < width)
        loss = (self.heads[role](features) - target).square().mean()
        return Out(loss, {f"loss_{role}": loss}, target)

    @torch.no_grad()
    def before_step(self, clock: Clock, pas: Pass) -> None:
        role, width = pas.variant
        for weight in (self.heads[role].weight, self.trunk[0].weight):
            assert weight.grad is not None
            weight.grad += width * 1e-2 * weight * weight.grad.norm()

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        follow(self.teacher, self.trunk)


class TwoOptimizers(Objective):
    """Weights and quantizer parameters under optimizers of their own, clipped and stepped together; labels unread.

    The quantizer's start is set from data, kept as the buffer `start`.
    """

    frozen = ("teacher",)

    def __init__(self, bn: bool | str, dropout: float) -> None:
        super().__init__()
        self.trunk, self.teacher = trunk(bn, dropout), trunk(bn, 0.0).requires_grad_(False)
        self.head, self.clip = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.zeros(WIDTH))
        self.start: Tensor
        self.register_buffer("start", torch.zeros(WIDTH))

    @torch.no_grad()
    def begin_epoch(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> bool:
        if clock.epoch == 0:
            first = next(iter(batches()))
            assert first.label is None and first.share == 1.0
            self.start.copy_(self.trunk.eval()(first.views[0]).abs().mean(0))
            self.clip.copy_(self.start)
        return False

    def optimizers(self) -> dict[str, Optimizer]:
        groups: list[dict[str, Any]] = [
            {"params": list(self.trunk.parameters())},
            {"params": list(self.head.parameters()), "schedule": "head"},
        ]
        return {"main": SGD(groups, lr=1.0, momentum=0.9), "quant": Adam([self.clip], lr=1.0)}

    def passes(self, clock: Clock) -> Sequence[Pass]:
        return (Pass(step=("main", "quant")),)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        if batch.label is not None:
            raise AssertionError("labels were to stay unread")
        features = self.trunk(batch.views[0])
        clipped = torch.minimum(torch.maximum(features, -self.clip), self.clip)
        return Out((self.head(clipped) - self.teacher(batch.views[0])).square().mean() + self.clip.square().sum())


class Distilled(Objective):
    """A frozen teacher that the program makes again: large, with batch norm, drawn from a seed of its own."""

    rebuilt = ("teacher",)

    def __init__(self, bn: bool | str, dropout: float, seed: int) -> None:
        super().__init__()
        self.trunk = trunk(bn, dropout)
        torch.manual_seed(seed)
        self.teacher = nn.Sequential(trunk("local", dropout), nn.Linear(WIDTH, 2000), nn.Linear(2000, WIDTH))
        self.teacher.requires_grad_(False)

    def optimizers(self) -> dict[str, Optimizer]:
        return {"main": sgd(self.trunk)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        return Out((self.trunk(batch.views[0]) - self.teacher(batch.views[0])).square().mean())


class Swap(Objective):
    """Parameters replaced at an epoch's start, optimizer and DDP made anew, a clamp after each step; labels read."""

    needs_labels = True

    def __init__(self, bn: bool | str, dropout: float) -> None:
        super().__init__()
        self.trunk = trunk(bn, dropout)
        self.planes = nn.Parameter(torch.rand(4, WIDTH, 3))

    def optimizers(self) -> dict[str, Optimizer]:
        return {"main": SGD([self.planes, *self.trunk.parameters()], lr=1.0, momentum=0.9)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        weight = (self.planes - 0.5) @ 0.5 ** torch.arange(self.planes.shape[2]).to(self.planes)
        logits = F.linear(self.trunk(batch.views[0]), weight)
        return Out(F.cross_entropy(logits, batch.label), {"planes": self.planes.mean()})

    def after_step(self, clock: Clock, pas: Pass) -> None:
        self.planes.data.clamp_(0, 2)

    def begin_epoch(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> bool:
        with torch.no_grad():
            seen = sum(float(batch.views[0].mean()) * batch.share for batch in batches())
            planes = self.planes[..., :-1] if clock.epoch % 2 else torch.cat([self.planes, self.planes[..., :1]], 2)
            self.planes = nn.Parameter(planes * (0.9 + 1e-2 * seen))
        self.records.append({"event": "requantize", "planes": self.planes.shape[2], "seen": seen})
        return True

    def end_stage(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> None:
        self.planes = nn.Parameter(self.planes.detach()[..., :2].clone())
        self.records.append({"event": "requantize", "planes": 2})

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self.planes = nn.Parameter(torch.empty_like(state["planes"]))
        return super().load_state_dict(state, strict, assign)


def rows_of_all_ranks(x: Tensor) -> Tensor:
    if not dist.is_initialized():
        return x
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, x)
    return torch.cat(everyone)


class Queue(Objective):
    """Two views, a queue of keys as a buffer, a momentum copy that moves before each batch, by a schedule."""

    frozen = ("key",)
    n_views = 2

    def __init__(self, bn: bool | str, dropout: float) -> None:
        super().__init__()
        self.query, self.key = trunk(bn, dropout), trunk(bn, 0.0).requires_grad_(False)
        self.queue: Tensor
        self.place: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(20, WIDTH)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def optimizers(self) -> dict[str, Optimizer]:
        return {"main": sgd(self.query)}

    def before_batch(self, clock: Clock) -> None:
        follow(self.key, self.query, 0.8 + 0.1 * clock.epoch / clock.epochs + 0.1 * clock.step / clock.steps_per_epoch)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        q = F.normalize(self.query(batch.views[0]))
        with torch.no_grad():
            k = F.normalize(self.key(batch.views[1]))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1) / 0.2
        return Out(F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device)), {}, k)

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        keys = rows_of_all_ranks(torch.cat(list(carries)))
        where = (torch.arange(len(keys), device=keys.device) + self.place) % len(self.queue)
        self.queue[where] = keys
        self.place.add_(len(keys)).remainder_(len(self.queue))


class Hint(Objective):
    """First of two stages: features only."""

    frozen = ("teacher",)

    def __init__(self, net: nn.Module, bn: bool | str) -> None:
        super().__init__()
        self.trunk, self.teacher = net, trunk(bn, 0.0).requires_grad_(False)

    def optimizers(self) -> dict[str, Optimizer]:
        return {"main": sgd(self.trunk)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        return Out((self.trunk(batch.views[0]) - self.teacher(batch.views[0])).square().mean())


class Classes(Objective):
    """Second of two stages: the same trunk, a classifier."""

    needs_labels = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.trunk, self.classifier = net, nn.Linear(WIDTH, 4)

    def optimizers(self) -> dict[str, Optimizer]:
        return {"main": sgd(self)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        logits = self.classifier(self.trunk(batch.views[0]))
        top1 = (logits.argmax(1) == batch.label).to(logits.dtype).mean() * 100
        return Out(F.cross_entropy(logits, batch.label), {"top1": top1})


def stages(name: str, bn: bool | str, dropout: float, dtype: torch.dtype, teacher: int = 0) -> list[Stage]:
    """The stages of a toy run of three epochs, with weights that are a function of the name and the teacher's seed."""
    torch.manual_seed(len(name))
    rates = {"main": milestones(0.05, [1, 2], 0.5)}
    if name == "two_stages":
        net = trunk(bn, dropout)
        return [Stage(Hint(net, bn).to(dtype), 1, rates), Stage(Classes(net).to(dtype), 2, {"main": cosine(0.1)})]
    if name == "two_optimizers":
        both = {"main": cosine(0.05), "head": constant(0.02), "quant": constant(1e-3)}
        return [Stage(TwoOptimizers(bn, dropout).to(dtype), 3, both)]
    if name == "distilled":
        return [Stage(Distilled(bn, dropout, teacher).to(dtype), 3, rates)]
    kind: type[Heads | Swap | Queue] = {"heads": Heads, "swap": Swap, "queue": Queue}[name]
    return [Stage(kind(bn, dropout).to(dtype), 3, rates)]


TOYS = ("heads", "two_optimizers", "swap", "queue", "two_stages")
