"""Checkpoints, ours and the authors', as nets; the step they are of; files that are damaged or of others."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.evaluate.features import pooled
from lowbit.export.backbone import save_backbone
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import ENTRY
from lowbit.quant.binary import step_of
from s2bnn.load import from_checkpoint, header, open_student

ARCH = "cifar_resnet8_1x1"
Encoder = Callable[..., nn.Module]
Checkpoint = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("head", [None, nn.Linear(64, 16)])
def test_an_encoder_comes_back_at_its_step(
    encoder: Encoder, checkpoint: Checkpoint, tmp_path: Path, step: int, head: nn.Module | None
) -> None:
    torch.save(checkpoint(step, head), tmp_path / "a.pth.tar")
    net, x = load(tmp_path / "a.pth.tar"), torch.randn(2, 3, 8, 8)
    assert step_of(net) == step and net.pretrained_cfg["input_size"] == (3, 8, 8)  # type: ignore[index]
    assert torch.equal(net(x), encoder(step, head).eval()(x)) and net(x).shape == (2, 16)


def test_every_file_of_a_net_says_its_step(encoder: Encoder, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of the wrong step the same tensors are another net: it is refused."""
    net = encoder(1)
    torch.save(checkpoint(1), tmp_path / "own")
    save_backbone(net, tmp_path / "backbone", ARCH, checkpoint(1)[ENTRY])
    torch.save(net.state_dict(), tmp_path / "plain")
    x = torch.randn(2, 3, 8, 8)
    for name in ("own", "backbone"):
        found = open_student(tmp_path / name)
        assert (found.arch, found.step, step_of(found.model)) == (ARCH, 1, 1)
        assert torch.equal(found.model(x), pooled(net.eval(), x))
        assert torch.equal(open_student(tmp_path / name, ARCH, 1).model(x), found.model(x))
        with pytest.raises(InputError, match=f"{name}: it is of step 1, not 2: leave out --step"):
            open_student(tmp_path / name, step=2)
    with pytest.raises(InputError, match="does not say what of it is binary: give --step 1"):
        open_student(tmp_path / "plain", ARCH)
    with pytest.raises(InputError, match="--student"):
        open_student(tmp_path / "plain", step=1)
    assert torch.equal(open_student(tmp_path / "plain", ARCH, 1).model(x), pooled(net, x))
    other = open_student(tmp_path / "plain", ARCH, 2).model(x)
    assert not torch.allclose(other, pooled(net, x), rtol=0.01)


def test_classifiers(encoder: Encoder, checkpoint: Checkpoint, tmp_path: Path) -> None:
    net = encoder(2, nn.Linear(64, 5))
    torch.save(
        {**header(ARCH, 2, checkpoint(2)[ENTRY], "classifier", 5), "state_dict": net.state_dict()}, tmp_path / "a"
    )
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(tmp_path / "a")(x), net.eval()(x))
    assert torch.equal(open_student(tmp_path / "a", classes=5).model(x), net(x))
    assert torch.equal(open_student(tmp_path / "a").model(x), pooled(net, x))
    with pytest.raises(InputError, match="a net of 5 classes, and 7 are needed"):
        open_student(tmp_path / "a", classes=7)
    torch.save(checkpoint(2), tmp_path / "b")
    with pytest.raises(InputError, match="without the last layer"):
        open_student(tmp_path / "b", classes=16)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"binarization": 3}, "binarization 3"),
        ({"binarization": True}, "binarization True"),
        ({"binarization": None}, "binarization None"),
        ({"binarization": 0}, "do not fit"),  # a net of ReLUs
        ({"arch": "cifar_resnet14_1x1"}, "do not fit"),
        ({"arch": "no_net"}, "unknown net"),
        ({"format": 2}, "update lowbit-s2bnn"),
        ({"state_dict": {}}, "damaged"),
        ({"state_dict": {"encoder_q.fc.0.weight": torch.ones(3, 3)}}, "do not fit"),
        ({"classes": 10**9}, "classes"),
    ],
)
def test_damaged_checkpoints_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, entries: dict[str, Any], said: str
) -> None:
    torch.save({**checkpoint(2), **entries}, tmp_path / "a")
    with pytest.raises(InputError, match=said) as error:
        load(tmp_path / "a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float16, torch.complex64])
@pytest.mark.parametrize("key", ["encoder_k.bn1.weight", "encoder_k.conv1.bias", "teacher.bn1.running_var"])
def test_weights_that_are_no_floats_are_refused_though_nobody_reads_them(
    checkpoint: Checkpoint, tmp_path: Path, key: str, kind: torch.dtype
) -> None:
    content = checkpoint(2)
    content["state_dict"] |= {key: torch.ones(3).to(kind)}
    torch.save(content, tmp_path / "a")
    for read in (load, open_student):
        with pytest.raises(InputError, match=rf"a: (state_dict\.)?{key} holds "):
            read(tmp_path / "a")


@pytest.mark.parametrize(
    "mean",
    [[0.5, 0.5], None, ["a"] * 3, [float("nan")] * 3, torch.ones(3), torch.ones(1, requires_grad=True),
     [torch.ones(1)] * 3],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_damaged_settings_of_pictures_are_refused(checkpoint: Checkpoint, tmp_path: Path, mean: Any) -> None:
    content = checkpoint(2)
    torch.save({**content, ENTRY: {**content[ENTRY], "mean": mean}}, tmp_path / "a")
    for read in (load, open_student):
        with pytest.raises(InputError, match=r"a: .*pretrained_cfg"):
            read(tmp_path / "a")
    theirs = {"state_dict": content["state_dict"], ENTRY: {"mean": mean}, "input_size": 3}  # says nothing to us
    torch.save(theirs, tmp_path / "b")
    assert open_student(tmp_path / "b", ARCH, 2).said == {}


def test_files_of_others_are_left_to_them(checkpoint: Checkpoint) -> None:
    state = create_model(ARCH).state_dict()
    assert from_checkpoint({"state_dict": state}) is None and from_checkpoint(state) is None
    assert from_checkpoint({**checkpoint(2), "package": "other"}) is None
    assert from_checkpoint({"state_dict": 3}) is None


@pytest.fixture(scope="module")
def recorded(golden: Callable[[str], Path]) -> Path:
    return golden("s2bnn")


def their_file(folder: Path, kind: str) -> dict[str, Any]:
    """A checkpoint with the authors' keys and shapes; of random numbers, which take no memory."""
    keys = json.loads((folder / "keys.json").read_text())
    names = {"mlp": "pretrain_checkpoint_state_dict_mlp_K64", "lincls": "lincls_checkpoint_state_dict"}
    listed = keys[names.get(kind, names["mlp"])]
    if kind == "nomlp":
        listed = [row for row in listed if ".fc." not in row[0]] + keys[
            "pretrain_checkpoint_state_dict_nomlp_K64_fc_part"
        ]

    def values() -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for key, shape, dtype in listed:
            value = torch.rand((), generator=generator) + 0.1
            yield key, value.to(getattr(torch, dtype)).expand(shape)

    return {"epoch": 200, "arch": "resnet50", "state_dict": dict(values()), "optimizer": {}}


@pytest.mark.parametrize(("kind", "classes"), [("mlp", 0), ("nomlp", 0), ("lincls", 1000)])
def test_the_authors_files_are_read_by_whoever_knows_the_step(
    recorded: Path, kind: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what their blocks do not use; `lowbit.load` does not guess the step."""
    content = their_file(recorded, kind)
    with pytest.raises(InputError, match=r"whether its weights are binary: `s2bnn export FILE --step 2"):
        from_checkpoint(content)
    monkeypatch.setattr("lowbit.models.weight_file.read_file", lambda path: content)
    found = open_student("a", step=2, classes=None)
    assert (found.arch, step_of(found.model), found.model.num_classes) == ("reactnet_a", 2, classes)
    prefix = "module." if kind == "lincls" else "module.encoder_q."
    own = found.model.state_dict()
    assert all(torch.equal(own[key].cpu(), content["state_dict"][prefix + key]) for key in own)
    left = {key.removeprefix(prefix) for key in content["state_dict"] if key.startswith(prefix)} - own.keys()
    assert left and all(key.split(".")[2].startswith(("binary_pw", "bn2")) for key in left if ".fc." not in f".{key}")


def test_their_file_with_a_strange_tensor_is_refused(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = their_file(recorded, "mlp")
    content["state_dict"]["module.encoder_q.feature.1.other"] = torch.ones(2)
    monkeypatch.setattr("lowbit.models.weight_file.read_file", lambda path: content)
    with pytest.raises(InputError, match=r"a: it has feature\.1\.other, which a reactnet_a has not"):
        open_student("a", step=2)


def test_keys_are_mapped_as_recorded_and_give_the_recorded_features(recorded: Path, tmp_path: Path) -> None:
    """One sign near 0 may flip: pictures are compared one by one (the record's README)."""
    keys = json.loads((recorded / "keys.json").read_text())["pretrain_checkpoint_state_dict_mlp_K64"]
    kept = json.loads((recorded / "lincls.json").read_text())["mapping"]["kept"]
    with np.load(recorded / "lincls.npz") as arrays:
        features = torch.as_tensor(arrays["lincls.features"])
    with np.load(recorded / "reactnet.npz") as arrays:
        shift = float(arrays["s"])
    phase = {1.9: 1.3, 2.6: 1.7}[shift]  # of the pictures: of each key
    position = {key: (k, shape) for k, (key, shape, _) in enumerate(keys)}
    state = {key: fill(key, *position[key], phase) for key, _ in kept}
    torch.save({"state_dict": state, "arch": "resnet50", "epoch": 1}, tmp_path / "a")
    found = open_student(tmp_path / "a", step=2)
    own = found.model.state_dict()
    mapped = {ours for _, ours in kept}
    assert own.keys() <= mapped and all(torch.equal(own[ours], state[key]) for key, ours in kept if ours in own)
    i = torch.arange(8 * 3 * 64 * 64, dtype=torch.float64)
    x = torch.sin(0.01 * i * i + shift + 0.3).float().view(8, 3, 64, 64)
    with torch.no_grad():
        differences = (found.model(x) - features).abs().amax(1) / features.abs().max()
    assert (differences < 1e-5).sum() >= 6


def fill(key: str, k: int, shape: list[int], phase: float) -> Tensor:
    """The record's formula of weights."""
    if not shape:
        return torch.tensor(0)
    count = int(np.prod(shape))
    s = torch.arange(count, dtype=torch.float64).mul_(0.7).add_(phase * k).add_(0.1).sin_()
    if len(shape) > 1 and not key.endswith("bias"):
        s.mul_((2 / (count / shape[0])) ** 0.5)
    elif "prelu" in key:
        s.mul_(0.1).add_(0.25)
    else:
        s.mul_(0.1).add_(1 if key.endswith(("running_var", "weight")) else 0)
    return s.view(shape).float()
