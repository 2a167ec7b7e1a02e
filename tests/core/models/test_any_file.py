"""The matrix of `file_variants`: both methods read the same files, each tensor of them, and refuse the others."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from file_variants import CLASSES, NETS, Variant, variants
from torch import Tensor, nn

from bsq import checkpoint, load
from lowbit.errors import InputError
from lowbit.models.create import create_model
from ssql.evaluation import open_pretrained

MATRIX = [(net, variant) for net in NETS for variant in variants(net)]


def by_ssql(path: Path, arch: str) -> nn.Module:
    """As `ssql linear` and `sweep` read a backbone."""
    return open_pretrained(path, arch).model


def by_bsq(path: Path, arch: str) -> nn.Module:
    """As `bsq train --model` reads its start."""
    saved = checkpoint.read(path)
    model = create_model(saved.weights.choose_arch(arch, saved.arch), num_classes=CLASSES)
    return load.load_float_(model, saved, new_head=True)


@cache
def keys_of(arch: str) -> set[str]:
    return set(create_model(arch, num_classes=0).state_dict())


def right(found: dict[str, Tensor], variant: Variant, backbone: set[str]) -> bool:
    wanted = dict(variant.wanted)
    if variant.name == "no-counters":
        wanted = {key: value * 0 if key.endswith("tracked") else value for key, value in wanted.items()}
    heads = found.keys() - backbone
    return all(torch.equal(found[key], wanted[key]) for key in backbone) and all(
        torch.equal(found[key], wanted[key]) == variant.head for key in heads
    )


@pytest.mark.parametrize(("arch", "variant"), MATRIX, ids=[f"{arch}-{variant.name}" for arch, variant in MATRIX])
def test_both_methods_read_or_refuse_it(
    arch: str, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / variant.name
    variant.write(path)
    for reader in (by_ssql, by_bsq):
        if variant.outcome != "read":
            with pytest.raises(InputError) as refused:
                reader(path, arch)
            assert variant.says in str(refused.value) and str(path) in str(refused.value)
            assert "\n" not in str(refused.value) and not (tmp_path / "harm").exists()
            continue
        assert right(reader(path, arch).state_dict(), variant, keys_of(arch))


def test_there_are_enough_of_each() -> None:
    found = Counter(variant.outcome for _, variant in MATRIX)
    assert len(MATRIX) >= 60 and found["read"] >= 45 and len({(arch, v.name) for arch, v in MATRIX}) == len(MATRIX)
    assert set(found) == {"read", "code", "lacks", "two", "numbers", "damaged"}
    assert found["numbers"] + found["damaged"] < found["code"] + found["lacks"] + found["two"]
