"""The distillation losses: against recorded numbers and slow formulas, value and gradient, in double precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.losses.ranks import Ranks
from lowbit.train.protocol import Clock
from sqakd.kd import contrast, maps, regress, relations
from sqakd.kd.svd import kdsvd, leading

CLOCK = Clock(0, 0, 4, 0, 2, 0)
Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def close(found: Tensor, expected: Tensor, relative: float = 1e-6) -> None:
    expected = expected.detach()
    error = float((found.detach() - expected).abs().max() / expected.abs().max())
    assert found.shape == expected.shape and error < relative, error


def features(kd: Any, places: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    student = [kd[f"fs{i}"].double().requires_grad_() for i in places]
    return student, [kd[f"ft{i}"].double() for i in places]


def given(module: nn.Module, kd: Any, prefix: str, renamed: Mapping[str, str]) -> nn.Module:
    """The recorded parameters, by their names in the module."""
    module = module.double()
    own = dict(module.named_parameters())
    for theirs, ours in renamed.items():
        own[ours].data = kd[f"{prefix}p.{theirs}"].double()
    return module


def gradients(module: nn.Module, kd: Any, prefix: str, renamed: Mapping[str, str], noise: Sequence[str] = ()) -> None:
    """Against the recorded ones; `noise`: those that are 0 but for rounding."""
    own = dict(module.named_parameters())
    for theirs, ours in renamed.items():
        if theirs not in noise:
            close(own[ours].grad, kd[f"{prefix}gp.{theirs}"].double(), 3e-6)  # type: ignore[arg-type]


PLAIN: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "attention": (maps.attention, (1, 2, 3)), "nst": (maps.nst, (1, 2, 3)), "similarity": (relations.similarity, (3,)),
    "rkd": (relations.rkd, (4,)), "fsp": (maps.fsp, (0, 1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PLAIN))
def test_recorded_losses_without_parameters(recorded: Any, name: str) -> None:
    kd, (loss, places) = recorded["kd"], PLAIN[name]
    student, teacher = features(kd, places)
    value = loss(student, teacher)
    close(value, kd[f"{name}.loss"].double())
    value.backward()
    for i, leaf in zip(places, student, strict=True):
        close(leaf.grad, kd[f"{name}.g_fs{i}"].double(), 2e-6)  # type: ignore[arg-type]


HINT = {"conv.weight": "regression.0.weight", "conv.bias": "regression.0.bias", "bn.weight": "regression.1.weight",
        "bn.bias": "regression.1.bias"}  # fmt: skip


def test_recorded_hint(recorded: Any) -> None:
    kd = recorded["kd"]
    student, teacher = features(kd, (2,))
    module = given(regress.Hint(student[0].shape, teacher[0].shape), kd, "hint.", HINT)
    value = module(student, teacher)
    close(value, kd["hint.loss"].double())
    value.backward()
    close(student[0].grad, kd["hint.g_fs2"].double())  # type: ignore[arg-type]
    gradients(module, kd, "hint.", HINT, noise=("conv.bias",))


def vid_names(place: int) -> dict[str, str]:
    means = {f"regressor.{i}.weight": f"mean.{place}.{i}.weight" for i in (0, 2, 4)}
    return {"log_scale": f"scale.{place}", **means}


def test_recorded_vid(recorded: Any) -> None:
    kd = recorded["kd"]
    student, teacher = features(kd, (1, 2, 3))
    module = regress.Variational([f.shape for f in student], [f.shape for f in teacher])
    close(module.scale[0].double(), torch.full((4,), 4.9932, dtype=torch.float64), 1e-4)
    for place in range(3):
        given(module, kd, f"vid.{place}.", vid_names(place))
    value = module(student, teacher)
    close(value, kd["vid.loss"].double())
    value.backward()
    for place, leaf in enumerate(student):
        close(leaf.grad, kd[f"vid.g_fs{place + 1}"].double(), 2e-6)  # type: ignore[arg-type]
        gradients(module, kd, f"vid.{place}.", vid_names(place))


def test_recorded_correlation(recorded: Any) -> None:
    kd = recorded["kd"]
    student, teacher = features(kd, (4,))
    module = relations.Correlation((8, 8), 16)
    names = {of: {f"linear.{part}": f"{name}.{part}" for part in ("weight", "bias")}
             for of, name in (("s", "student"), ("t", "teacher"))}  # fmt: skip
    for of, renamed in names.items():
        given(module, kd, f"correlation.{of}.", renamed)
    value = module(student, teacher)
    close(value, kd["correlation.loss"].double())
    value.backward()
    close(student[0].grad, kd["correlation.g_fs4"].double(), 2e-6)  # type: ignore[arg-type]
    for of, renamed in names.items():
        gradients(module, kd, f"correlation.{of}.", renamed)


def coder_names(prefix: str, *, norm: bool) -> dict[str, str]:
    """Their places 0, 3, 6 of convolutions, 1, 4, 7 of batch norms -> ours."""
    step = 3 if norm else 2
    places = {3 * i + j: step * i + j for i in range(3) for j in range(1 + norm)}
    return {f"{prefix}.{theirs}.{part}": f"{prefix}.{ours}.{part}"
            for theirs, ours in places.items() for part in ("weight", "bias")}  # fmt: skip


def test_recorded_factor_transfer(recorded: Any) -> None:
    """Both stages."""
    kd = recorded["kd"]
    student, teacher = features(kd, (3,))
    both = {**coder_names("encoder", norm=False), **coder_names("decoder", norm=False)}
    paraphraser = given(regress.Paraphraser(8), kd, "factor.par.", both)
    value = paraphraser([], teacher)
    close(value, kd["factor.init_loss"].double())
    value.backward()
    gradients(paraphraser, {k.replace("par.init.gp", "par.gp"): v for k, v in kd.items()}, "factor.par.", both)
    paraphraser.zero_grad()
    translated = coder_names("encoder", norm=True)
    renamed = {theirs: ours.replace("encoder", "translator") for theirs, ours in translated.items()}
    module = given(regress.FactorTransfer((8, 8), paraphraser), kd, "factor.tr.", renamed)  # type: ignore[arg-type]
    close(paraphraser.encoder(teacher[0]), kd["factor.factor_t"].double())  # type: ignore[operator]
    value = module(student, teacher)
    close(value, kd["factor.loss"].double())
    value.backward()
    close(student[0].grad, kd["factor.g_fs3"].double(), 2e-6)  # type: ignore[arg-type]
    gradients(module, kd, "factor.tr.", renamed, noise=[f"encoder.{i}.bias" for i in (0, 3, 6)])
    assert all(p.grad is None for p in paraphraser.parameters())


@pytest.mark.parametrize("size", ["down", "up", "crop"])
@pytest.mark.parametrize("name", ["at", "nst", "vid", "ft", "hint"])
def test_recorded_losses_of_maps_of_other_sizes(recorded: Any, size: str, name: str) -> None:
    kd = recorded["kd"]
    s, t = kd[f"mis.{size}.fs"].double().requires_grad_(), kd[f"mis.{size}.ft"].double()
    prefix = f"mis.{size}.{name}."
    if name == "ft":
        value = F.l1_loss(*map(maps.attention_of, maps.same_size(s, t)))
    elif name == "hint":
        value = given(regress.Hint(s.shape, t.shape), kd, prefix, HINT)([s], [t])
    elif name == "vid":
        value = given(regress.Variational([s.shape], [t.shape]), kd, prefix, vid_names(0))([s], [t])
    else:
        value = {"at": maps.attention, "nst": maps.nst}[name]([s], [t])
    close(value, kd[f"{prefix}loss"].double())
    value.backward()
    close(s.grad, kd[f"{prefix}g_fs"].double(), 2e-6)  # type: ignore[arg-type]


LATER = CLOCK._replace(step=1)  # Z is set in a run's first batch


def crd(kd: Any, prefix: str, width: int, n: int) -> contrast.ContrastLoss:
    """Embeddings and memories as recorded."""
    module = contrast.ContrastLoss((width, width), 8, n, 0.1, 0.5)
    for of, name in (("s", "student"), ("t", "teacher")):
        given(module, kd, f"{prefix}{of}.", {f"linear.{part}": f"{name}.{part}" for part in ("weight", "bias")})
    module.student_memory.copy_(kd[f"{prefix}memory_v1"])
    module.teacher_memory.copy_(kd[f"{prefix}memory_v2"])
    return module


def test_recorded_crd(recorded: Any) -> None:
    """Two calls, of which the first sets Z; the memories after each."""
    kd, layout = recorded["kd"], Ranks((6,))
    student, teacher = features(kd, (4,))
    module, rows = crd(kd, "crd.", 8, 16), kd["crd.contrast_idx"].long()
    for call, clock in ((1, CLOCK), (2, LATER)):
        student[0].grad = None
        value, seen = module(student, teacher, rows, layout, clock)
        close(value, kd[f"crd.call{call}.loss"].double())
        value.backward()
        close(student[0].grad, kd[f"crd.call{call}.g_fs4"].double())  # type: ignore[arg-type]
        if call == 1:
            for of, name in (("s", "student"), ("t", "teacher")):
                names = {f"linear.{part}": f"{name}.{part}" for part in ("weight", "bias")}
                gradients(module, kd, f"crd.{of}.", names)
        close(module.z, kd["crd.call1.params"][2:4].double())
        module.update_(seen, kd["crd.index"].long(), layout)
        close(module.student_memory, kd[f"crd.call{call}.memory_v1"].double())
        close(module.teacher_memory, kd[f"crd.call{call}.memory_v2"].double())


def test_recorded_cktf(recorded: Any) -> None:
    """The five terms of Last, with the gradients of its features; the blocks that the other choices take."""
    kd = recorded["kd"]
    blocks = {of: [[kd[f"crdst.block_{of}.{g}.{b}"].double() for b in (0, 1)] for g in range(3)] for of in "st"}
    last = [pair[1].requires_grad_() for pair in blocks["s"]]
    for family, window in (("res", 8), ("vgg", 99)):
        for g in range(3):
            close(contrast.block_features(last[g], window), kd[f"crdst.{family}.pair{g}_s"].double())
            for method in ("Last", "First", "Smallest", "Largest"):
                chosen = blocks["t"][g][contrast.choose_block(last[g], blocks["t"][g], method)]
                close(contrast.block_features(chosen, window), kd[f"crdst.{family}.{method}.pair{g}_t"].double())
    ends = [kd[f"crdst.{name}_s"].double().requires_grad_() for name in ("f0", "flast")]
    fs = [ends[0], *map(contrast.block_features, last), ends[1]]
    ft = [kd[f"crdst.{name}"].double() for name in ("f0_t", *(f"res.Last.pair{g}_t" for g in range(3)), "flast_t")]
    losses = [crd(kd, f"crdst.crd{i}.", f.shape[1], 12) for i, f in enumerate(fs)]
    terms = [
        loss([s], [t], kd["crdst.contrast_idx"].long(), Ranks((4,)), CLOCK)[0]
        for loss, s, t in zip(losses, fs, ft, strict=True)
    ]
    close(terms[-1], kd["crdst.loss_crd"].double())
    close(torch.stack(terms[:-1]).sum(), kd["crdst.loss_st"].double())
    (terms[-1] + 0.8 * torch.stack(terms[:-1]).sum()).backward()
    named = {"f0_s": ends[0], "flast_s": ends[1], **{f"block_s.{g}.1": last[g] for g in range(3)}}
    for name, leaf in named.items():
        close(leaf.grad, kd[f"crdst.g_{name}"].double(), 3e-6)  # type: ignore[arg-type]


def test_cktf_joins_its_terms() -> None:
    """The sum with its weights, on the blocks of the teacher's stages; each memory is moved."""
    torch.manual_seed(0)
    fs = [torch.randn(4, 2, 8, 8), torch.randn(4, 3, 8, 8), torch.randn(4, 4, 4, 4)]
    ft = [torch.randn(4, 2, 8, 8), *(torch.randn(4, 3, 8, 8) for _ in range(2)), *(torch.randn(4, 4, 4, 4),) * 3]
    losses = [contrast.ContrastLoss((w, w), 5, 9, 0.1, 0.5) for w in (2, 3, 4, 4)]
    rows, layout, before = torch.randint(9, (4, 6)), Ranks((4,)), [loss.student_memory.clone() for loss in losses]
    for method, number in (("First", 0), ("Last", 1)):
        module = contrast.ContrastLosses(losses, contrast.Weights(2.0, 0.5), (2, 3), method)
        value, seen = module(fs, ft, rows, layout, LATER)
        s, t = contrast.features(fs), contrast.features([ft[0], ft[1 + number], ft[3]])
        terms = [loss([a], [b], rows, layout, LATER)[0] for loss, a, b in zip(losses, s, t, strict=True)]
        close(value, 2 * terms[3] + (terms[0] + terms[1] + terms[2]) / 2)
    module.update_(seen, torch.arange(4), layout)
    assert all(not torch.equal(loss.student_memory, old) for loss, old in zip(losses, before, strict=True))


@pytest.mark.parametrize("relaxed", [False, True])
def test_negatives(relaxed: bool) -> None:
    """Of other classes, all of them; the positive is the picture, or any of its class; a function of the clock."""
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 2, 4])
    draw = contrast.Negatives(labels, 500, relaxed)
    batch = Batch((torch.empty(4),), torch.tensor([0, 3, 4, 9]), labels[[0, 3, 4, 9]])
    rows = draw(batch, CLOCK, Ranks((4,)))
    assert rows.shape == (4, 501)
    for row, index in zip(rows, batch.index, strict=True):
        own = labels[index]
        assert set(labels[row[1:]].tolist()) == set(labels.tolist()) - {int(own)} and labels[row[0]] == own
        assert row[1:].bincount(minlength=10)[labels != own].min() > 30  # each about equally often
        assert relaxed or row[0] == index
    assert torch.equal(rows, draw(batch, CLOCK, Ranks((4,)))) and not torch.equal(rows, draw(batch, LATER, Ranks((4,))))
    half = Batch((torch.empty(2),), batch.index[2:], labels[batch.index[2:]])
    assert torch.equal(draw(half, CLOCK, Ranks((2, 2), 1)), rows[2:]), "two processes draw what one does"
    with pytest.raises(InputError, match="all pictures are of one"):
        contrast.Negatives(torch.ones(3).long(), 2)
    with pytest.raises(ValueError, match="labels=True"):
        draw(half._replace(label=None), CLOCK, Ranks((2,)))


def slow_attention(s: Tensor, t: Tensor) -> Tensor:
    def of(f: Tensor) -> Tensor:
        return torch.stack([sum(m * m for m in one) / len(one) for one in f]).flatten(1)  # type: ignore[arg-type]

    a, b = of(s), of(t)
    return sum(((x / x.norm() - y / y.norm()) ** 2).sum() for x, y in zip(a, b, strict=True)) / a.numel()


def slow_nst(s: Tensor, t: Tensor) -> Tensor:
    def mean(a: Tensor, b: Tensor) -> Tensor:
        pairs = [(u.flatten() @ v.flatten() / u.norm() / v.norm()) ** 2
                 for x, y in zip(a, b, strict=True) for u in x for v in y]  # fmt: skip
        return torch.stack(pairs).mean()

    return mean(t, t) + mean(s, s) - 2 * mean(s, t)


def slow_similarity(s: Tensor, t: Tensor) -> Tensor:
    def rows(f: Tensor) -> Tensor:
        g = torch.stack([torch.stack([(x * y).sum() for y in f]) for x in f])
        return torch.stack([row / row.norm() for row in g])

    return ((rows(s) - rows(t)) ** 2).sum() / len(s) ** 2


def slow_rkd(s: Tensor, t: Tensor) -> Tensor:
    n = range(len(s))

    def distances(f: Tensor) -> Tensor:
        d = torch.stack([(f[i] - f[j]).norm() for i in n for j in n if i != j])
        return d / d.mean()

    def angles(f: Tensor) -> Tensor:
        def unit(i: int, j: int) -> Tensor:
            return (f[i] - f[j]) / (f[i] - f[j]).norm()

        return torch.stack([unit(i, j) @ unit(k, j) for j in n for i in n for k in n if j not in (i, k)])

    def huber(a: Tensor, b: Tensor) -> Tensor:
        d = (a - b).abs()
        return torch.where(d < 1, d**2 / 2, d - 0.5).sum()

    return 25 * huber(distances(s), distances(t)) / len(s) ** 2 + 50 * huber(angles(s), angles(t)) / len(s) ** 3


def slow_pkt(s: Tensor, t: Tensor) -> Tensor:
    def p(f: Tensor) -> Tensor:
        k = torch.stack([torch.stack([(x @ y / x.norm() / y.norm() + 1) / 2 for y in f]) for x in f])
        return torch.stack([row / row.sum() for row in k])

    a, b = p(s), p(t)
    terms = [y * ((y + 1e-7) / (x + 1e-7)).log() for x, y in zip(a.flatten(), b.flatten(), strict=True)]
    return torch.stack(terms).sum() / len(terms)


def slow_fsp(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    def flow(a: Tensor, b: Tensor) -> Tensor:
        a = F.adaptive_avg_pool2d(a, b.shape[2])
        return torch.einsum("bchw,bdhw->bcd", a, b) / b[0, 0].numel()

    flows = [[flow(f[i], f[i + 1]) for i in range(len(f) - 1)] for f in (first, second)]
    return sum((((s - t) ** 2).mean() for s, t in zip(*flows, strict=True)), torch.zeros(()))


def slow_svd(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    def vectors(f: Tensor, n: int) -> Tensor:
        return torch.linalg.svd(f.flatten(1).T, full_matrices=False)[2][:n]

    loss, size = torch.zeros((), dtype=torch.float64), len(first[0])
    for i in range(size):
        teacher = [vectors(t[i], 1)[0] for t in second]
        student = []
        for s, v in zip(first, teacher, strict=True):
            best = max(vectors(s[i], 4), key=lambda w: abs(float((w @ v).detach())))
            student.append(best * torch.sign((best @ v).detach()))
        for k in range(len(first) - 1):
            for c in range(len(teacher[k])):
                for d in range(len(teacher[k + 1])):
                    own, wanted = (torch.exp(-((x[k][c] - x[k + 1][d]) ** 2) / 8) for x in (student, teacher))
                    loss = loss + (own - wanted) ** 2
    return loss / size


def slow_boundaries(module: Any, s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for number, (connector, f, target) in enumerate(zip(module.connectors, s, t, strict=True)):
        for r, wanted in zip(connector(f).flatten(), target.flatten(), strict=True):
            wrong = 1 - r if wanted > 0 else 1 + r
            loss = loss + 2.0 ** (number + 1 - len(s)) * (wrong**2 if wrong > 0 else 0 * r) / len(f)
    return 3 / 1000 * loss


def slow_crd(module: contrast.ContrastLoss, s: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """Before Z is set to something else than 1."""
    loss, n = torch.zeros((), dtype=torch.float64), len(module.student_memory)
    embedded = [f / f.norm(dim=1, keepdim=True) for f in (module.student(s), module.teacher(t))]
    c = (rows.shape[1] - 1) / n
    for v, memory in zip(embedded, (module.teacher_memory, module.student_memory), strict=True):
        for one, chosen in zip(v, rows, strict=True):
            p = [torch.exp(one @ memory[row] / module.temperature) for row in chosen]
            loss = loss - (p[0] / (p[0] + c)).log() - sum((c / (q + c)).log() for q in p[1:])
    return loss / len(s)


def slow_correlation(module: Any, s: Tensor, t: Tensor) -> Tensor:
    e = (s @ module.student.weight.T + module.student.bias - t @ module.teacher.weight.T - module.teacher.bias).abs()
    return sum((e[i] @ e[i + 1] for i in range(len(e) - 1)), torch.zeros(())) / (len(e) - 1)


def normed(x: Tensor, norm: Any) -> Tensor:
    """Batch norm in training, by its formula."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    y: Tensor = (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    return y


def slow_hint(module: Any, s: Tensor, t: Tensor) -> Tensor:
    conv, norm, _ = module.regression
    mapped = torch.einsum("bchw,dc->bdhw", s, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]
    return ((normed(mapped, norm).clamp(min=0) - t) ** 2).mean()


def slow_variational(module: Any, s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for mean, scale, f, wanted in zip(module.mean, module.scale, s, t, strict=True):
        for i in (0, 2, 4):
            f = torch.einsum("bchw,dc->bdhw", f.clamp(min=0) if i else f, mean[i].weight[:, :, 0, 0])
        for c, a in enumerate(scale):
            v = torch.log1p(torch.exp(a)) + 1e-5
            loss = loss + ((f[:, c] - wanted[:, c]) ** 2 / (2 * v) + torch.log(v) / 2).sum() / wanted.numel()
    return loss


def slow_factor(module: Any, s: Tensor, t: Tensor) -> Tensor:
    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    for i in (0, 2, 4):
        conv = module.paraphraser.encoder[i]
        t = leaky(F.conv2d(t, conv.weight.detach(), conv.bias.detach(), padding=1))
    for i in (0, 3, 6):
        conv = module.translator[i]
        s = leaky(normed(F.conv2d(s, conv.weight, conv.bias, padding=1), module.translator[i + 1]))
    pairs = [[(f**2).mean(0) / (f**2).mean(0).norm() for f in x] for x in (s, t)]
    return torch.stack([(a - b).abs() for a, b in zip(*pairs, strict=True)]).mean().sum()


SHAPES = [(3, 4, 4, 4), (3, 5, 2, 2), (3, 5, 2, 2)]
VECTORS, ROWS = [(5, 4)], torch.tensor([[0, 6, 1, 6], [3, 2, 2, 0], [1, 0, 5, 4], [6, 3, 3, 1], [2, 1, 0, 6]])
Pair = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def over(slow: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda fs, ft: sum((slow(s, t) for s, t in zip(fs, ft, strict=True)), torch.zeros(()))


def with_module(module: Any, slow: Callable[..., Tensor], *, first: bool = True) -> Pair:
    """Its loss, and a formula that reads its parameters; `first`: of the first features alone."""
    module = module.double()
    return module, lambda fs, ft: slow(module, *((fs[0], ft[0]) if first else (fs, ft)))


def made(name: str) -> tuple[Pair, list[tuple[int, ...]]]:
    """Loss and slow formula, the shapes of its features."""
    plain: dict[str, tuple[Pair, list[tuple[int, ...]]]] = {
        "attention": ((maps.attention, over(slow_attention)), SHAPES), "nst": ((maps.nst, over(slow_nst)), SHAPES),
        "similarity": ((relations.similarity, over(slow_similarity)), SHAPES[:1]),
        "rkd": ((relations.rkd, over(slow_rkd)), VECTORS), "pkt": ((relations.pkt, over(slow_pkt)), VECTORS),
        "fsp": ((maps.fsp, slow_fsp), SHAPES), "kdsvd": ((kdsvd, slow_svd), SHAPES),
    }  # fmt: skip
    if name in plain:
        return plain[name]
    if name == "crd":
        module = contrast.ContrastLoss((4, 4), 6, 7, 0.1, 0.5).double()
        clock, layout = LATER, Ranks((5,))
        loss = lambda fs, ft: module(fs, ft, ROWS, layout, clock)[0]  # noqa: E731
        return (loss, lambda fs, ft: slow_crd(module, fs[0], ft[0], ROWS)), VECTORS
    if name == "correlation":
        return with_module(relations.Correlation((4, 4), 7), slow_correlation), VECTORS
    if name == "hint":
        return with_module(regress.Hint(*SHAPES[:1] * 2), slow_hint), SHAPES[:1]
    if name == "vid":
        return with_module(regress.Variational(SHAPES, SHAPES), slow_variational, first=False), SHAPES
    if name == "abound":
        return with_module(regress.ActivationBoundaries(SHAPES, SHAPES), slow_boundaries, first=False), SHAPES
    return with_module(regress.FactorTransfer((4, 4), regress.Paraphraser(4)), slow_factor), SHAPES[:1]


NAMES = ("attention", "nst", "similarity", "rkd", "pkt", "fsp", "kdsvd", "crd", "correlation", "hint", "vid", "abound",
         "factor")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_slow_formulas(name: str) -> None:
    """Value, gradients of the student's features and of parameters; finite second derivatives, for the Hessian."""
    torch.manual_seed(3)
    (loss, slow), shapes = made(name)
    fs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ft = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    trained = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    values, slopes = [], []
    for formula in (loss, slow):
        value = formula(fs, ft)
        values.append(value)
        slopes.append(torch.autograd.grad(value, [*fs, *trained], create_graph=True, allow_unused=True))
    close(values[0], values[1], 1e-6 if name == "crd" else 1e-10)
    assert all(g is not None for g in slopes[0][: len(fs)])
    largest = max(float(g.detach().abs().max()) for g in slopes[1] if g is not None)
    for found, expected in zip(*slopes, strict=True):
        if found is not None or expected is not None:
            assert float((found - expected).detach().abs().max()) < 1e-6 * largest
    again = torch.autograd.grad(sum((g**2).sum() for g in slopes[0][: len(fs)]), fs)  # type: ignore[arg-type]
    assert all(bool(torch.isfinite(g).all()) for g in again)


def test_a_single_picture() -> None:
    """It has no relation to another one: losses and gradients are 0."""
    torch.manual_seed(0)
    for loss in (relations.similarity, relations.rkd, relations.pkt, relations.Correlation((4, 4), 7)):
        f = torch.randn(1, 4, requires_grad=True)
        value = loss([f], [torch.randn(1, 4)])
        value.backward()
        assert f.grad is not None and float(value.detach()) == float(f.grad.abs().max()) == 0


def test_singular_vectors_of_a_dead_map() -> None:
    """Of maps that are 0, or have equal channels, the gradient is finite, where torch's own is not."""
    f = torch.zeros(3, 4, 3, 3, dtype=torch.float64)
    f[1] = torch.randn(9, dtype=torch.float64).reshape(1, 3, 3)
    f[2, 0] = torch.randn(3, 3, dtype=torch.float64)
    f.requires_grad_()
    (slope,) = torch.autograd.grad(leading(f, 4).square()[:, 0].sum(), f)
    assert bool(torch.isfinite(slope).all()) and bool(slope[1].any())
    (torchs,) = torch.autograd.grad(torch.linalg.svd(f.flatten(2).mT, full_matrices=False)[2][:, 0].sum(), f)
    assert not bool(torch.isfinite(torchs).all())
