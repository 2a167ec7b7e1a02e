"""The shared sections, and a method's tree on them: keys of its own, other names of the loss, all else shared."""

from pathlib import Path
from typing import Any, Literal

import pytest

from lowbit.config.keys import root, train
from lowbit.config.load import load_config
from lowbit.config.tree import Node, annotation_of, dump_config, leaves, value_of, with_values
from lowbit.config.values import Share
from lowbit.errors import InputError


class Criterion(train.Criterion):
    NAME: Literal["", "near", "far"] = ""


class Loss(train.Loss):
    CRITERION: Criterion = Criterion()


class Train(train.Train):
    LOSS: Loss = Loss()
    DROP_LAST: bool = False


class Widths(Node):
    RANGE: tuple[Share, Share] = (0.25, 1.0)


class Model(root.Model):
    WIDTHS: Widths = Widths()


class Config(root.Root):
    MODEL: Model = Model()
    TRAIN: Train = Train()
    LEGACY: Any = ""


TEXT = """
SEED: 1
LEGACY: {ANY: {KEY: [1, 2]}}
MODEL: {ARCH: net, INPUTSHAPE: [32, 32], WIDTHS: {RANGE: "(0.5, 1.0)"}}
TRAIN: {EPOCHS: 4, DROP_LAST: true, DATASET: cifar100, LOSS: {LAMBDA: 1.0e-4, CRITERION: {NAME: far}}}
AUG: {TRAIN: {HORIZONTAL_FLIP: {PROB: 0.5}}}
"""


def load(folder: Path, *overrides: str) -> Config:
    (folder / "a.yaml").write_text(TEXT)
    return load_config(Config, folder / "a.yaml", overrides, shipped=folder)


def test_a_method_adds_keys_and_names_to_the_shared_sections(tmp_path: Path) -> None:
    config = load(tmp_path, "TRAIN.LR_SCHEDULER.BASE_LR=0.5")
    assert (config.MODEL.WIDTHS.RANGE, config.MODEL.INPUTSHAPE) == ((0.5, 1.0), (32, 32))
    assert config.TRAIN.DROP_LAST and config.TRAIN.EPOCHS == 4 and config.TRAIN.LR_SCHEDULER.BASE_LR == 0.5
    assert config.TRAIN.LOSS.CRITERION.NAME == "far" and config.TRAIN.LOSS.LAMBDA == 1e-4
    assert dump_config(config)["LEGACY"] == {"ANY": {"KEY": [1, 2]}}
    for argument, said in (
        ("TRAIN.LOSS.CRITERION.NAME=middle", "'near' or 'far'"),
        ("TRAIN.DROPLAST=True", "'TRAIN.DROP_LAST'"),
        ("MODEL.WIDTHS.RANGE=[0, 1]", "greater than 0"),
    ):
        with pytest.raises(InputError, match=said):
            load(tmp_path, argument)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("TRAIN.LOSS.CRITERION.NAME=", ""),
        ("TRAIN.DATASET=", ""),
        ("MODEL.ARCH=", ""),
        ("TRAIN.LR_SCHEDULER.TYPE=", None),
    ],
)
def test_nothing_behind_a_key_is_empty_text_where_it_holds_text(
    argument: str, value: str | None, tmp_path: Path
) -> None:
    assert value_of(load(tmp_path, argument), argument[:-1]) == value


def test_home_is_home_in_every_key_that_holds_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("OUTPUT", "MODEL.CHECKPOINT", "MODEL.PRETRAINED"):
        for given, value in (("~/a", f"{tmp_path}/a"), ("~", str(tmp_path)), ("~nobody-here/a", "~nobody-here/a")):
            assert value_of(load(tmp_path, f"{key}={given}"), key) == value
        with pytest.raises(InputError, match=rf"{key}=.*name of more than 255 bytes"):
            load(tmp_path, f"{key}=a/{'é' * 128}/b")
    assert load(tmp_path, "MODEL.CHECKPOINT=auto").MODEL.CHECKPOINT == "auto"
    (tmp_path / "base.yaml").write_text("SEED: 5\n")
    (tmp_path / "b.yaml").write_text("BASE_CONFIG: ~/base.yaml\n")
    assert load_config(Config, "~/b.yaml", shipped=tmp_path / "none").SEED == 5


@pytest.mark.parametrize(
    ("argument", "most"),
    [
        ("SEED=100000000000000000000", 2**63 - 1),
        (f"SEED={2**63}", 2**63 - 1),
        (f"TRAIN.EPOCHS=1{'0' * 29}", 10**9 - 1),
        ("TRAIN.BATCH_SIZE=1000000000", 10**9 - 1),
        ("TRAIN.NUM_WORKERS=513", 512),
        ("AUG.TRAIN.RANDOMCROP.PADDING=4097", 4096),
        ("AUG.TRAIN.RANDOMERASE.MAX_COUNT=101", 100),
        ("AUG.TRAIN.RESIZE.SIZE=[4097, 8]", 4096),
        ("MODEL.INPUTSHAPE=[8, 1000000000000]", 4096),
    ],
)
def test_numbers_have_a_ceiling(argument: str, most: int, tmp_path: Path) -> None:
    key, _, value = argument.partition("=")
    with pytest.raises(InputError, match=rf"{key}=.*\b{most}\b"):
        load(tmp_path, argument)
    if value.isdigit():
        assert value_of(load(tmp_path, f"{key}={most}"), key) == most


def test_its_keys_are_the_shared_ones_and_its_own() -> None:
    assert set(leaves(Config)) - set(leaves(root.Root)) == {"MODEL.WIDTHS.RANGE", "TRAIN.DROP_LAST", "LEGACY"}
    assert set(leaves(root.Root)) < set(leaves(Config))


def test_a_key_by_its_path() -> None:
    assert value_of(Config(SEED=3), "SEED") == 3 and value_of(Config(), "AUG.TRAIN.RESIZE.KEEP_RATIO") is True
    assert annotation_of(Config, "TRAIN") is Train and annotation_of(Config, "TRAIN.DROP_LAST") is bool
    for path in ("TRAIN.X", "SEED.X", "X"):
        with pytest.raises(KeyError):
            annotation_of(Config, path)


def test_other_values_leave_the_config_as_it_was() -> None:
    config = root.Root()
    other = with_values(config, {"TRAIN.LR_SCHEDULER.BASE_LR": 0.5, "SEED": 3})
    changed = {key for key in leaves(root.Root) if value_of(other, key) != value_of(config, key)}
    assert changed == {"TRAIN.LR_SCHEDULER.BASE_LR", "SEED"} and other.TRAIN.LR_SCHEDULER.BASE_LR == 0.5
