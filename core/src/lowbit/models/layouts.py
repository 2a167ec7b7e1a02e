"""Where the encoders of a file stand, by its keys: which of them is read, and under which prefix.

Read are the layouts of timm and torchvision (the net itself), of MoCo v1 to v3, SimSiam, SwAV, BYOL, DINO, solo-learn
and lightly, and whatever else puts the net's own keys behind the words below. The choice is made before anything is
stripped: of an encoder and its momentum copy the trained one; of DINO (seen by its last layer, or by a backbone in the
entry `teacher`) the teacher, whose features its authors evaluate; of the same net twice the one averaged over training,
as in timm.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from lowbit.checkpoint.check import behind
from lowbit.errors import InputError
from lowbit.models.create import classifiers

# words that stand before a net's own keys: entries of the file, wrappers, and attributes of the methods' modules
AVERAGED = ("state_dict_ema", "model_ema")
TRAINED = (
    "encoder_q", "base_encoder", "online_encoder", "online_network", "query_encoder", "student", "student_backbone",
)  # fmt: skip
MOMENTUM = (
    "encoder_k", "momentum_encoder", "target_encoder", "target_network", "key_encoder", "momentum_backbone",
    "backbone_momentum", "teacher", "teacher_backbone",
)  # fmt: skip
NEUTRAL = ("state_dict", "model_state_dict", "model", "net", "module", "_orig_mod", "backbone", "encoder")
WORDS = frozenset((*AVERAGED, *TRAINED, *MOMENTUM, *NEUTRAL))
OF_DINO = ("last_layer", "dino_loss", "dino_head")
DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {  # (blocks of each stage, whether they are bottlenecks)
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
OF_TEACHER = re.compile(r"teacher\..*backbone\.|.*teacher_backbone\.")
ENOUGH = 0.25  # of the tensors of the fullest: with fewer it is no encoder of this net


class Branch(NamedTuple):
    """One encoder of a file.

    Attributes:
        prefix: what stands before its keys. state: keys without it, with all that stands beside the net's own.
        others: prefixes of the encoders that were not chosen.
    """

    prefix: str
    state: dict[str, Tensor]
    others: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the file holds a net as such; in a method's layout the last layer is its projector."""
        return _rank(self.prefix, dino=False)[0] == 1

    @property
    def averaged(self) -> bool:
        """Whether it is an average over training."""
        return not _rank(self.prefix, dino=False)[1]


def choose(tensors: Mapping[str, Tensor], model: nn.Module) -> Branch:
    """The encoder of a file that is read into a net.

    Args:
        tensors: of the whole file, by their dotted places.
        model: a timm net, with or without a classifier.

    Raises:
        InputError: none of the tensors is the net's, or two encoders are alike and nothing says which one is meant.
    """
    heads = classifiers(model)
    own = [key for key in model.state_dict() if not key.startswith(heads)]
    known, unknown = _encoders(tensors, own)
    if not known:
        tensors = _named(tensors, model)
        known, unknown = _encoders(tensors, own)
    if not known:
        raise InputError(_nothing(tensors, own, unknown))
    dino = any(word in key.split(".") for key in tensors for word in OF_DINO) or any(OF_TEACHER.match(p) for p in known)
    ranked = sorted(known, key=lambda prefix: _rank(prefix, dino))
    best = [prefix for prefix in ranked if _rank(prefix, dino) == _rank(ranked[0], dino)]
    states = {prefix: behind(tensors, prefix) for prefix in best}
    for prefix in best[1:]:
        if not _equal(states[best[0]], states[prefix], own):
            raise InputError(
                f"it holds two encoders, under {best[0] or 'no prefix'} and {prefix}, and nothing to choose by: save "
                "the state_dict of one of them alone"
            )
    return Branch(best[0], states[best[0]], tuple(prefix for prefix in ranked if prefix not in best))


def resnet_of(state: Mapping[str, Tensor]) -> str | None:
    """The ResNet of this house or of torchvision whose keys these are, by its blocks and its stem; None: of no known.

    Args:
        state: keys without prefixes.
    """
    counts = blocks_of(state)
    if counts[3] == 0 and len(set(counts[:3])) == 1:
        arch = f"cifar_resnet{6 * counts[0] + 2}_1x1"
        return arch if counts[0] and timm.is_model(arch) else None
    depth = DEPTHS.get((counts, "layer1.0.conv3.weight" in state))
    stem = state.get("conv1.weight")
    if depth is None or stem is None:
        return None
    if depth == 50 and len(stem) == 4 * 64:
        return "resnet50_w4"
    return f"cifar_resnet{depth}" if stem.shape[-1] == 3 else f"resnet{depth}"


def blocks_of(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """How many blocks each of the four stages of a ResNet has, by the keys."""
    blocks = {tuple(key.split(".")[:2]) for key in state if key.startswith("layer")}
    return tuple(sum(stage == f"layer{number}" for stage, *_ in blocks) for number in (1, 2, 3, 4))


def _encoders(tensors: Mapping[str, Tensor], own: Collection[str]) -> tuple[list[str], list[str]]:
    """Prefixes behind which encoders of the net stand, and those of them that hold other words than the known ones.

    The longest of the net's keys that fits counts.
    """
    wanted, counts = set(own), dict[str, int]()
    for key in tensors:
        starts = (0, *(dot.end() for dot in re.finditer(r"\.", key)))
        start = next((start for start in starts if key[start:] in wanted), None)
        if start is not None:
            counts[key[:start]] = counts.get(key[:start], 0) + 1
    found = [prefix for prefix, count in counts.items() if count >= ENOUGH * max(counts.values())]
    known = [prefix for prefix in found if WORDS.issuperset(prefix.split(".")[:-1])]
    return known, [prefix for prefix in found if prefix not in known]


def _rank(prefix: str, dino: bool) -> tuple[int, bool]:
    """What is chosen first is lowest."""
    words = prefix.split(".")[:-1]
    if dino and any(word.startswith("teacher") for word in words):
        role = -1
    elif any(word in MOMENTUM for word in words):
        role = 2
    else:
        role = 0 if any(word in TRAINED for word in words) else 1
    return role, not any(word in AVERAGED for word in words)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], own: Collection[str]) -> bool:
    return all((key in one) == (key in other) and (key not in one or torch.equal(one[key], other[key])) for key in own)


def _named(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Keys of an `nn.Sequential` over the net's children (lightly's backbones): numbers become the names in order.

    A prefix with another number of children that hold tensors is left as it is.
    """
    held = {key.partition(".")[0] for key in model.state_dict() if not key.startswith(classifiers(model))}
    children = [name for name, _ in model.named_children() if name in held]
    numbered = re.compile(rf"((?:(?:{'|'.join(WORDS)})\.)*)(\d+)\.(.*)")
    matches = {key: match for key in tensors if (match := numbered.fullmatch(key))}
    numbers: dict[str, set[int]] = {}
    for match in matches.values():
        numbers.setdefault(match[1], set()).add(int(match[2]))
    names = {
        (prefix, str(number)): name
        for prefix, some in numbers.items() if len(some) == len(children)
        for number, name in zip(sorted(some), children, strict=True)
    }  # fmt: skip

    def rename() -> Iterator[tuple[str, Tensor]]:
        for key, value in tensors.items():
            match = matches.get(key)
            name = names.get((match[1], match[2])) if match else None
            yield (key, value) if match is None or name is None else (f"{match[1]}{name}.{match[3]}", value)

    return dict(rename())


def _nothing(tensors: Mapping[str, Tensor], own: Collection[str], unknown: Collection[str]) -> str:
    """Why no encoder was found."""
    first, wanted = next(iter(tensors), "nothing"), next(iter(own))
    behind = f"; the net's keys stand behind {', '.join(unknown)}: save that state_dict alone" if unknown else ""
    if len(unknown) > 1:
        behind = f"; it holds several encoders, behind {', '.join(unknown)}, and nothing to choose by: save one alone"
    return f"none of its tensors ({first}, ...) is one of the net's ({wanted}, ...){behind}"
