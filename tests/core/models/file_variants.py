"""Files of weights as the world has them, each with the outcome that is right, stated before any reader sees it.

`python tests/core/models/file_variants.py FOLDER` writes them all and prints the outcomes. Every file is about one net
A (`wanted`); B is another draw of the same net, which a reader has to leave out.
"""

import argparse
import functools
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowbit.data.recipe import CIFAR10, plain
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import pretrained_cfg
from ssql.config import Config
from ssql.load import header

NETS = ("cifar_resnet8_1x1", "test_vit")
CLASSES = 10
PREFIXES = (
    "module.", "module.module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "backbone.",
    "encoder.", "module.model.backbone.", "model.net.encoder.",
)  # fmt: skip
Point = namedtuple("Point", "x y")
State = Mapping[str, Tensor]

CFG = pretrained_cfg(plain(CIFAR10), (3, 32, 32))


class Variant(NamedTuple):
    """A file.

    Attributes:
        name: of the file. write: makes it at a path.
        outcome: "read", or why it is refused: "code", "lacks", "two" (encoders), "numbers" or "damaged".
        says: what the refusal names.
        wanted: the tensors that are right, by the net's keys, in the net's own type.
        head: whether the last layer of the file is the one of the net.
    """

    name: str
    write: Callable[[Path], object]
    outcome: str
    says: str
    wanted: State
    head: bool


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def under(prefix: str, state: State) -> dict[str, Tensor]:
    """The keys behind a prefix."""
    return {prefix + key: value for key, value in state.items()}


def drawn(arch: str, seed: int, classes: int = CLASSES) -> dict[str, Tensor]:
    """A net's tensors, statistics and counters drawn too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = create_model(arch, num_classes=classes).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) + 0.1 if value.is_floating_point() else value + 3
        for key, value in state.items()
    }


def variants(arch: str) -> Iterator[Variant]:
    """All files about one net."""
    a, b = drawn(arch, 1), drawn(arch, 2)
    last = "fc." if any(key.startswith("fc.") for key in a) else "head."
    body = {key: value for key, value in a.items() if not key.startswith(last)}
    other = {key: value for key, value in b.items() if not key.startswith(last)}

    def read(name: str, content: object, wanted: State = a, head: bool = False, **how: Any) -> Variant:
        return Variant(name, lambda path: torch.save(content, path, **how), "read", "", wanted, head)

    yield from plain(read, arch, a, body)
    yield from beside(read, a)
    yield from numbers(read, a, b)
    yield from methods(read, arch, body, other, last)
    if arch.startswith("cifar"):
        with torch.random.fork_rng(devices=[]):
            children = nn.Sequential(*list(create_model(arch).children())[:-1])
        numbered = dict(zip(children.state_dict(), body.values(), strict=True))
        heads = {"projection_head.layers.0.weight": torch.ones(4, 4)}
        yield read("lightly-sequential", {"state_dict": under("backbone.", numbered) | heads})
    save = functools.partial(save_file, a)
    yield Variant("safetensors", save, "read", "", a, True)
    yield Variant("safetensors-ours", lambda path: save_file(body, path, {"lowbit.backbone": f'{{"arch": "{arch}"}}'}),
                  "read", "", a, False)  # fmt: skip
    yield Variant("safetensors-module", lambda path: save_file(under("module.", a), path), "read", "", a, True)
    yield from refused(arch, a, b, body, last)


Read = Callable[..., Variant]


def plain(read: Read, arch: str, a: State, body: State) -> Iterator[Variant]:
    """The net itself, in entries and behind wrappers."""
    yield read("bare", a, head=True)
    yield read("bare-no-head", body)
    for entry in ("state_dict", "model", "net", "model_state_dict"):
        yield read(f"entry-{entry}", {entry: a, "epoch": 3}, head=True)
    yield read("entry-teacher", {"teacher": body})
    yield read("entry-nested", {"model": {"state_dict": a}, "epoch": 3}, head=True)
    for prefix in PREFIXES:
        yield read(f"prefix-{prefix}", {"state_dict": under(prefix, a)}, head=True)
    yield read("legacy", {"state_dict": a}, head=True, _use_new_zipfile_serialization=False)
    yield read(
        "timm", {"epoch": 9, "arch": arch, "state_dict": a, "optimizer": {}, "version": 2, "metric": 71.5}, head=True
    )
    yield read("torch-swa", under("module.", a) | {"n_averaged": torch.tensor(4)}, head=True)
    yield read("lightning", {"state_dict": under("model.", a), "pytorch-lightning_version": "2.5",
                             "hyper_parameters": {"lr": 0.1}, "callbacks": {}, "optimizer_states": [{"state": {}}]},
               head=True)  # fmt: skip
    yield read("bsq-float", {"format": 1, "package": "bsq", "arch": arch, "classes": CLASSES, "activations": {},
                             "state_dict": under("module.", a)}, head=True)  # fmt: skip
    yield read("parameters", {key: nn.Parameter(v) if v.is_floating_point() else v for key, v in a.items()}, head=True)
    yield read("ordered", {"state_dict": OrderedDict(a)}, head=True)
    yield read("other-classes", a | {key: torch.ones(1000, *v.shape[1:]) for key, v in a.items() if key not in body})
    yield read("no-counters", {key: value for key, value in a.items() if not key.endswith("tracked")}, head=True)


def beside(read: Read, a: State) -> Iterator[Variant]:
    """Harmless values beside the weights."""
    values = {
        "numpy-scalars": {"best": np.float64(0.7), "epoch": np.int64(3), "done": np.bool_(True)},
        "numpy-arrays": {"random": np.random.RandomState(0).get_state(), "curve": np.arange(3.0)},
        "containers": {"meters": defaultdict(list, {"loss": [1.0]}), "last": deque([1, 2], maxlen=5), "seen": {1, 2},
                       "count": Counter("aab"), "some": frozenset({1}), "where": Path("runs/1")},
        "optimizer": {"optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
                                    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}, "scaler": {"scale": 2.0}},
        "words": {"format": "pt", "classes": ["cat", "dog"], "config": "a.yaml", "input_size": 224, "arch": "mine"},
        "nan-in-the-optimizer": {"optimizer": {"state": {0: {"exp_avg": torch.tensor([torch.nan])}}}},
    }  # fmt: skip
    for name, value in values.items():
        yield read(f"beside-{name}", {"state_dict": a, **value}, head=True)


def numbers(read: Read, a: State, b: State) -> Iterator[Variant]:
    """Other types of floats, and averages over training."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in a.items()}
        wanted = {key: value.float() if value.is_floating_point() else value for key, value in cast.items()}
        yield read(f"type-{dtype}"[11:], {"state_dict": cast}, wanted, head=True)
    yield read("ema-timm", {"state_dict": b, "state_dict_ema": a, "arch": "unknown"}, head=True)
    yield read("ema-model", {"model": under("module.", b), "model_ema": a}, head=True)


def methods(read: Read, arch: str, q: State, k: State, last: str) -> Iterator[Variant]:
    """The layouts of self-supervised methods: `q` is wanted."""
    some = torch.ones(4, 4)

    def both(name: str, mine: str, theirs: str, **more: Tensor) -> Variant:
        state = under(mine, q) | under(theirs, k) | {key.replace("__", "."): value for key, value in more.items()}
        return read(name, {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {}})

    head = {f"encoder_q.{last}weight": torch.ones(CLASSES, q_width(arch)), f"encoder_q.{last}bias": torch.ones(CLASSES)}
    yield both("moco-v1", "module.encoder_q.", "module.encoder_k.", **under("module.", head), module__queue=some)
    yield both("moco-v2", "module.encoder_q.", "module.encoder_k.", **{f"module.encoder_q.{last}0.weight": some},
               module__queue_ptr=torch.zeros(1, dtype=torch.long))  # fmt: skip
    yield both("moco-v3", "module.base_encoder.", "module.momentum_encoder.", module__predictor__0__weight=some)
    yield both("byol", "online_encoder.net.", "target_encoder.net.", online_encoder__projector__0__weight=some)
    yield both("byol-net", "online_encoder.net.", "target_encoder.net.", **under("net.", q))
    yield both("byol-bolts", "online_network.encoder.", "target_network.encoder.")
    yield both("solo-learn", "backbone.", "momentum_backbone.", projector__0__weight=some, classifier__weight=some)
    yield both("solo-learn-old", "encoder.", "momentum_encoder.", projector__0__weight=some)
    yield both("lightly", "backbone.", "backbone_momentum.", projection_head__layers__0__weight=some)
    yield both("distilled", "student.", "teacher.")
    yield both("lightly-dino", "teacher_backbone.", "student_backbone.", teacher_head__last_layer__weight_g=some)
    projected = {f"module.encoder.{last}0.weight": some, "module.predictor.0.weight": some}
    yield read("simsiam", {"state_dict": under("module.encoder.", q) | projected})
    swav = under("module.", q) | {"module.projection_head.0.weight": some, "module.prototypes.weight": some}
    yield read("swav", {"state_dict": swav, "epoch": 800})
    yield read("swav-hub", swav)
    yield read("dino-hub", q)
    heads = {"head.mlp.0.weight": some, "head.last_layer.weight_g": some, "head.last_layer.weight_v": some}
    yield read("dino-full", {"student": under("module.backbone.", k) | under("module.", heads), "epoch": 100,
                             "teacher": under("backbone.", q) | heads, "dino_loss": {"center": some}})  # fmt: skip
    config = Config.model_validate({"MODEL": {"ARCH": arch}, "SSL": {"TYPE": "MoCo"}})
    yield read("ssql-pretraining", {**header(config, CFG), "epoch": 1, "state_dict": under("encoder_q.", q) |
                                    under("encoder_k.", k) | {"queue": some}})  # fmt: skip
    yield read("encoder-k-alone", {"state_dict": under("module.encoder_k.", q)})


@functools.cache
def q_width(arch: str) -> int:
    """Features of a net."""
    return int(create_model(arch, num_classes=0).num_features)


def refused(arch: str, a: State, b: State, body: State, last: str) -> Iterator[Variant]:
    """What is not read, and why."""

    def no(name: str, outcome: str, says: str, content: object, **how: Any) -> Variant:
        return Variant(name, lambda path: torch.save(content, path, **how), outcome, says, {}, False)

    arguments = argparse.Namespace(lr=0.1)
    yield no("namespace", "code", "holds argparse.Namespace beside the weights: save its state_dict alone",
             {"state_dict": a, "args": arguments})  # fmt: skip
    yield no("namespace-legacy", "code", "argparse.Namespace", {"model": a, "args": arguments},
             _use_new_zipfile_serialization=False)  # fmt: skip
    yield no("named-tuple", "code", "file_variants.Point beside", {"state_dict": a, "best": Point(1, 2)})
    yield no("function", "code", "functools.partial", {"state_dict": a, "schedule": functools.partial(max, 1)})
    yield no("harmful", "code", "pathlib.Path", {"state_dict": a, "extra": Harmful()})
    yield no("whole-net", "code", "a whole net (", {"model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())})
    yield Variant("torch-script", script, "code", "TorchScript", {}, False)
    key, float_keys = "norm.weight" if "norm.weight" in a else "bn1.weight", [k for k in body if "tracked" not in k]
    for missing in (key, float_keys[0], float_keys[-1]):
        yield no(f"lacks-{missing}", "lacks", missing, {"model": {k: v for k, v in a.items() if k != missing}})
    lacking = under("encoder_q.", {k: v for k, v in body.items() if k != key}) | under("encoder_k.", body)
    yield no("lacks-in-the-query", "lacks", key, {"state_dict": lacking})
    yield no("head-alone", "lacks", "none of its tensors", {k: v for k, v in a.items() if k not in body})
    yield no("wider", "lacks", "shape", a | {key: torch.ones(len(a[key]) + 1)})
    deeper = next(k for k in float_keys if k.startswith(("layer3.0.", "blocks.0.")))
    yield no("deeper", "lacks", deeper.replace(".0.", ".99."), a | {deeper.replace(".0.", ".99.", 1): a[deeper]})
    yield no("two-entries", "two", "two encoders", {"model": a, "net": b})
    yield no("two-wrappers", "two", "two encoders", under("model.", a) | under("net.", b))
    yield no("two-unknown", "two", "several encoders", under("left.", a) | under("right.", b))
    for dtype in (torch.int8, torch.bool, torch.complex64):
        yield no(f"type-{dtype}"[11:], "numbers", key, a | {key: a[key].to(dtype)})
    for value in (torch.nan, torch.inf):
        yield no(f"holds-{value}", "numbers", f"NaN or infinity in {key}", a | {key: a[key] * value})
    yield no("no-tensors", "damaged", "no state_dict of tensors", {"state_dict": {}, "epoch": 3})
    yield no("list", "damaged", "holds a list", [1, 2])
    yield Variant("truncated", lambda path: damage(a, path, 0.7), "damaged", "damaged", {}, False)
    yield Variant("altered", lambda path: damage(a, path, 1), "damaged", "checksum", {}, False)
    yield Variant("picture", lambda path: path.write_bytes(b"GIF89a and more"), "damaged", "damaged", {}, False)
    yield Variant("empty", lambda path: path.write_bytes(b""), "damaged", "damaged", {}, False)
    yield Variant(
        "cut-safetensors", lambda path: path.write_bytes(b"\x40\0\0\0\0\0\0\0{cut"), "damaged", "damaged", {}, False
    )


def script(path: Path) -> None:
    """A net as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Conv2d(3, 4, 3)), str(path))


def damage(state: State, path: Path, kept: float) -> None:
    """A file cut off after a part of its bytes, or with one byte of a tensor changed."""
    torch.save({"state_dict": state}, path)
    whole = bytearray(path.read_bytes())
    at = whole.index(next(v for v in state.values() if v.numel() > 100).numpy().tobytes())
    whole[at] ^= 1
    path.write_bytes(whole[: int(kept * len(whole))])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for net in NETS:
        for variant in variants(net):
            variant.write(folder / f"{net}-{variant.name}")
            sys.stdout.write(f"{net:18} {variant.name:28} {variant.outcome:8} {variant.says}\n")
