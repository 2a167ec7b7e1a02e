"""What a file of weights holds, and what it says of its net; never by its name or folder, never running code of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from lowbit.checkpoint.budget import parse_json
from lowbit.checkpoint.check import first_bad, kind, tensors
from lowbit.checkpoint.digest import digest
from lowbit.checkpoint.read import METADATA, read_file
from lowbit.errors import InputError

KEY = "lowbit.backbone"  # in the metadata of our own safetensors: JSON, {"arch": timm name, "digest": of the file}
PACKED = "lowbit.packed"  # there, of a packed file: its head (`lowbit.export.codes`)
CLASSES, SIZES = "classes", "sizes"  # there, of a whole net: of its last layer; of layers that are slimmed
BINARIZATION = "binarization"  # there, of a binary net: what of it is binary (`lowbit.quant.binary.STEPS`)
WEIGHTS = (".weight", ".bias", ".running_mean", ".running_var")  # ends of names that are floats in every net


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        name: of the file, for messages.
        content: as it was read.
    """

    name: str
    content: Mapping[str, Any]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its dotted place: `state_dict.module.conv1.weight`."""
        return dict(tensors(self.content))

    @cached_property
    def said(self) -> dict[str, Any]:
        """What the file says beside its tensors."""
        said = {key: value for key, value in self.content.items() if next(tensors(value), None) is None}
        if not self.described:
            return said
        try:
            described = parse_json(said[METADATA][KEY])
        except ValueError as error:
            raise InputError(f"{self.name}: its metadata is damaged ({str(error)[:150]}); name another file") from error
        return said | described

    @property
    def described(self) -> bool:
        """Whether it is a backbone that we exported."""
        metadata = self.content.get(METADATA)
        return isinstance(metadata, Mapping) and KEY in metadata

    @property
    def ours(self) -> bool:
        """Whether a package of this house wrote it, so that what it says of its net is binding."""
        return "package" in self.content or self.described

    @property
    def arch(self) -> str | None:
        """The timm name of its net, as far as it says one."""
        arch = self.said.get("arch")
        return arch if isinstance(arch, str) and timm.is_model(arch) else None

    def choose_arch(self, arch: str | None, shown: str | None = None, flag: str = "--arch") -> str:
        """The net to build: what a file of ours says or its keys show, what the caller says, what others' files say.

        Args:
            arch: the caller's timm name.
            shown: the net that the keys show, if they do.
            flag: of the command line, for the caller's name.

        Raises:
            InputError: the caller says another than a file of ours or the keys, or nobody says it; a packed file.
        """
        metadata = self.content.get(METADATA)
        if isinstance(metadata, Mapping) and PACKED in metadata:
            raise InputError(f"{self.name} is packed: `lowbit.load` reads it; name the file that it was made of")
        certain = (self.arch if self.ours else None) or shown
        if None not in (certain, arch) and certain != arch:
            raise InputError(f"{self.name}: it holds a {certain}, not a {arch}: name it ({flag} {certain})")
        found = certain or arch or self.arch
        if found is None:
            raise InputError(f"{self.name}: it does not say which net it holds: name timm's ({flag})")
        return found


def digest_of(said: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """The checksum of a backbone of ours: of its description and of its tensors, in whatever order a file has them."""
    return digest(dict(sorted({**{f"said {key}": value for key, value in said.items()}, **state}.items())))


def _check_digest(weights: Weights) -> None:
    """Whether a backbone of ours is what was written; release 0.1.0 wrote its net's name alone.

    Raises:
        InputError: another checksum, or a description that we do not write.
    """
    said, arch = weights.said, weights.said.get("arch")
    if not isinstance(arch, str):
        raise InputError(f"{weights.name}: its arch is {arch!r:.80}, which is no name; name another file")
    rest = {key: value for key, value in said.items() if key not in ("digest", METADATA)}
    named = set(rest) != {"arch"} or "digest" in said
    if named and said.get("digest") != digest_of(rest, weights.content["state_dict"]):
        raise InputError(f"{weights.name} is damaged (its checksum is wrong): export it again")


def read_weights(path: Path | str) -> Weights:
    """Read a file: `torch.save`'s (any version) or safetensors, ours or anybody's.

    Raises:
        InputError: missing, damaged, holding code or no tensors; of ours also one that holds NaN or infinity.
    """
    weights = Weights(str(path), read_file(path))
    if not weights.tensors:
        raise InputError(f"{path} holds no state_dict of tensors; name another file")
    for name, tensor in weights.tensors.items():
        if name.endswith(WEIGHTS) and (not tensor.is_floating_point() or tensor.element_size() == 1):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{path}: {name} holds {kind(tensor)} ({dtype}), no weights: name another file")
    if weights.described:
        _check_digest(weights)
    found = first_bad(weights.content) if weights.ours else None
    if found is not None:
        raise InputError(f"{path} holds NaN or infinity in {found}: that run diverged; name a checkpoint from before")
    return weights
