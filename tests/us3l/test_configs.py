"""US3L's tree, the authors' files in it, and the shipped configs against the authors' values."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowbit.config.tree import leaves, value_of
from lowbit.config.unused import is_unused
from us3l.config import Config, net_of, read_config, without_effect
from us3l.unused_keys import Command

ROOT = Path(__file__).resolve().parents[2]


def flat(config: Config) -> dict[str, Any]:
    return {key: value_of(config, key) for key in leaves(Config)}


def command_of(name: str) -> Command:
    if "calibrate" in name:
        return "calibrate"
    if "slimmable" in name:
        return "slimmable"
    if "linear_eval" in name or "finetune" in name:
        return "linear"
    return "distill" if "seed" in name else "ssl"


def live(command: Command, config: Config) -> Iterator[str]:
    unused = without_effect(command, config)
    for key in leaves(Config):
        if not is_unused(key, unused):
            yield key


@pytest.fixture(scope="module")
def raw(golden: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    return json.loads((golden("us3l") / "configs.json").read_text())


@pytest.fixture(scope="module")
def theirs(raw: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' files, rebuilt as YAML text."""
    folder = tmp_path_factory.mktemp("theirs")
    for name, values in raw.items():
        nested: dict[str, Any] = {}
        for key, value in values.items():
            *sections, last = key.split(".")
            place = nested
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(nested))
    return folder


def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def test_every_file_of_the_authors_resolves_to_its_values(
    raw: dict[str, dict[str, Any]], theirs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert len(raw) == 65
    for name, values in raw.items():
        caplog.clear()
        config = read_config(command_of(name), theirs / name)
        found = flat(config)
        for key, value in values.items():
            assert plain(found[key]) == plain(value), (name, key)
        assert len(caplog.messages) == 1, name
        named = set(caplog.messages[0].rpartition(": ")[2].split(", "))
        assert named == set(values) - set(live(command_of(name), config)), name
        assert {key for key in values if key.startswith(("AUG.", "QUANT."))} <= named


def test_the_authors_names_of_nets() -> None:
    assert net_of("us_cifar_resnet18") == ("cifar_resnet18", "universal")
    assert net_of("s_cifar_mobilenetv2") == ("cifar_mobilenetv2", "switchable")
    assert net_of("us_mobilenetv2") == ("mobilenetv2_100", "universal")
    assert net_of("resnet50") == ("resnet50", "plain")


def test_defaults_are_the_authors() -> None:
    expected = {
        "MODEL.ARCH": "", "MODEL.OFA.WIDTH_MULT": 1.0, "MODEL.OFA.WIDTH_MULT_RANGE": (0.25, 1.0),
        "MODEL.OFA.NUM_SAMPLE_TRAINING": 1, "MODEL.OFA.SANDWICH": True, "MODEL.OFA.SAMPLE_SCHEDULER": "",
        "MODEL.OFA.MOMENTUM_UPDATE": True, "MODEL.OFA.DISTILL": True,
        "MODEL.OFA.DISTILL_CRITERION": "CosineSimilarity", "MODEL.OFA.DISTILL_LAMBDA": 1.0,
        "MODEL.OFA.DISTILL_FEATURE": False, "MODEL.OFA.DISTILL_FEATURE_NAME": ("layer3.0.bn2",),
        "MODEL.OFA.DISTILL_FEATURE_DIM": (256,), "MODEL.OFA.REGULARIZER": False,
        "MODEL.OFA.REGULARIZER_CRITERION": "L2Reg", "MODEL.OFA.REGULARIZER_LAMBDA": 5e-4,
        "MODEL.OFA.REGULARIZER_DECAY_ALPHA": 0.2, "MODEL.OFA.REGULARIZER_DECAY_TYPE": "exp",
        "MODEL.OFA.REGULARIZER_DECAY_BINS": 4, "MODEL.OFA.REGULARIZER_WARMUP_EPOCHS": 0,
        "MODEL.OFA.USE_SLIMMABLE": False, "MODEL.OFA.CALIBRATE_BN": False, "TRAIN.USE_AMP": False,
        "TRAIN.SYNC_BN": False, "TRAIN.DROP_LAST": False, "TRAIN.BATCH_SIZE": 1, "TRAIN.LR_SCHEDULER.WARMUP_EPOCHS": 0,
        "PRUNE.ENABLE_PRUNE": False, "DISTILL.TEACHER_DIM": 128, "DISTILL.TEACHER_HIDDEN_DIM": 2048,
        "SSL.TYPE": None, "SSL.SETTING.DIM": 128, "SSL.SETTING.HIDDEN_DIM": 2048, "SSL.SETTING.T": 0.07,
        "SSL.SETTING.MOCO_K": 65536, "SSL.SETTING.MOMENTUM": 0.999, "SSL.SETTING.MLP": True,
        "SSL.SETTING.PREDICTOR": True, "SSL.SETTING.NEW_DISTILL_HEAD": True, "MODEL.OFA.STEP_PER": "width",
    }  # fmt: skip
    found = flat(Config())
    assert {key: found[key] for key in expected} == expected
    widths = found["MODEL.OFA.WIDTH_MULT_LIST"]
    assert len(widths) == 31 and (widths[0], widths[1], widths[-1]) == (0.25, 0.275, 1.0)


def test_reading_a_config_does_not_import_torch() -> None:
    code = "import sys, us3l.config; assert 'torch' not in sys.modules; assert 'timm' not in sys.modules"
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'us3l' / 'src')!r}]; "
    subprocess.run([sys.executable, "-c", paths + code], check=True)
