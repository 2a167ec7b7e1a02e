"""SSQL's tree, the authors' files in it, and the shipped configs against the authors' values."""

import itertools
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowbit.config.tree import dump_config, leaves
from lowbit.config.unused import is_unused
from lowbit.errors import InputError
from lowbit.options import WORKERS
from ssql.config import Config, read_config, without_effect
from ssql.unused_keys import Command

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "ssql" / "src" / "ssql" / "configs"
NAMES = sorted(path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.yaml") if path.parent.name != "base")
OURS = {  # without a file of the authors'
    "cifar/resnet18_ssql_simclr_cifar.yaml",
    "cifar/resnet18_rssql_simsiam_cifar.yaml",
    "ssl_qat/resnet18_linear_eval_imagenet.yaml",
    *(name for name in NAMES if name.startswith("folder/")),
}
DIFFERENT = {  # everywhere: paths of the authors' machines, pins derived instead of listed, a key of ours, the log
    "MODEL.PRETRAINED",
    "MODEL.CHECKPOINT",
    "QUANT.BIT_CONFIG",
    "TRAIN.GLOBAL_BATCH",
    "TRAIN.PRINT_FREQ",
}
DIFFERENT_IN = {  # like for like: the projectors of BYOL and SSQL_BYOL
    "cifar/resnet18_byol_cifar.yaml": {"SSL.SETTING.OUTPUT_BN": (None, True)},
    "cifar/resnet18_ssql_byol_cifar.yaml": {"SSL.SETTING.OUTPUT_BN": (None, True)},
    "imagenet/resnet18_byol_imagenet.yaml": {"SSL.SETTING.OUTPUT_BN": (None, True)},
    "imagenet/resnet50_byol_imagenet.yaml": {"SSL.SETTING.OUTPUT_BN": (None, True)},
}
TRANSFER = {"aircraft", "caltech101", "dtd", "flowers", "food101", "pets"}


def flat(config: Config) -> dict[str, Any]:
    dumped = dump_config(config)
    return {key: _at(dumped, key) for key in leaves(Config)}


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def command_of(name: str) -> Command:
    if name == "draw.yaml":
        return "draw"
    return "linear" if "linear_eval" in name or "finetune" in name else "ssl"


def live(command: Command, config: Config) -> Iterator[str]:
    unused = without_effect(command, config)
    for key in leaves(Config):
        if not is_unused(key, unused):
            yield key


@pytest.fixture(scope="module")
def raw(golden: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    return json.loads((golden("ssql") / "configs.json").read_text())


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


def test_every_file_of_the_authors_resolves_to_its_values(
    raw: dict[str, dict[str, Any]], theirs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert len(raw) == 49
    for name, values in raw.items():
        caplog.clear()
        config = read_config(command_of(name), theirs / name)
        found = flat(config)
        for key, value in values.items():
            expected = [float(number) for number in value[1:-1].split(",")] if str(value).startswith("(") else value
            assert found[key] == expected, (name, key)
        assert len(caplog.messages) == 1, name
        named = set(caplog.messages[0].rpartition(": ")[2].split(", "))
        assert named == set(values) - set(live(command_of(name), config)), name


def test_ours_have_the_values_of_the_authors_in_every_live_key(raw: dict[str, dict[str, Any]], theirs: Path) -> None:
    assert {name for name in raw if name.split("/")[0] not in TRANSFER} == set(NAMES) - OURS
    for name in set(NAMES) - OURS:
        command = command_of(name)
        ours, other = read_config(command, f"configs/{name}"), read_config(command, theirs / name)
        a, b = flat(ours), flat(other)
        assert set(live(command, ours)) == set(live(command, other))
        found = {key: (b[key], a[key]) for key in live(command, ours) if a[key] != b[key] and key not in DIFFERENT}
        assert found == DIFFERENT_IN.get(name, {}), name


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_works_from_anywhere_and_says_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.WARNING)
    config = read_config(command_of(name), f"./configs/{name}")
    assert caplog.messages == []
    text = (SHIPPED / name).read_text()
    header = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    folder = name.startswith("folder/")
    words = ("not run",) if folder else ("Paper row", "Measured: not run")
    assert all(word in header for word in ("Command", "ardware", "xpected", *words))
    assert re.search(r"(?:-m|Command:) ssql (\w+)", header)[1] == command_of(name)  # type: ignore[index]
    assert f"--config configs/{name}" in header
    if folder:
        assert (config.TRAIN.DATASET, config.MODEL.NUM_CLASSES) == ("folder", 0)
        assert config.TRAIN.BATCH_SIZE == config.TRAIN.GLOBAL_BATCH and config.MODEL.side in (64, 224)
    elif name != "draw.yaml":
        processes = re.search(r"--num_processes (\d+)", header)[1]  # type: ignore[index]
        assert int(processes) * config.TRAIN.BATCH_SIZE == config.TRAIN.GLOBAL_BATCH
    copied = tmp_path / "copied.yaml"
    copied.write_text(text)
    assert read_config(command_of(name), copied) == config


def test_pairs_differ_in_the_method_alone_where_the_headers_say_so() -> None:
    def differing(plain: str, ssql: str, *arguments: str) -> set[str]:
        a = flat(read_config("ssl", f"configs/{plain}.yaml"))
        b = flat(read_config("ssl", f"configs/{ssql}.yaml", arguments))
        return {key for key in a if a[key] != b[key] and not key.startswith("QUANT.")}

    cifar = "cifar/resnet18_"
    assert differing(f"{cifar}simsiam_cifar", f"{cifar}ssql_simsiam_cifar") == {"SSL.TYPE"}
    assert differing(f"{cifar}simclr_cifar", f"{cifar}ssql_simclr_cifar") == {"SSL.TYPE"}
    assert differing(f"{cifar}moco_cifar", f"{cifar}ssql_moco_cifar", "SSL.SETTING.MOCO_K=2048") == {"SSL.TYPE"}
    same_size = ("SSL.SETTING.DIM=512", "TRAIN.OPTIMIZER.WEIGHT_DECAY=0.0001")
    byol = differing(f"{cifar}byol_cifar", f"{cifar}ssql_byol_cifar", *same_size)
    assert byol == {"SSL.TYPE", "TRAIN.BATCH_SIZE"}  # per process: the batch of all is the same
    for net in ("18", "50"):
        names = f"imagenet/resnet{net}_simsiam_imagenet", f"imagenet/resnet{net}_ssql_simsiam_imagenet"
        assert differing(*names) <= {"SSL.TYPE", "TRAIN.EPOCHS"}


def test_the_recorded_schedules_have_our_configs_numbers(golden: Callable[[str], Path]) -> None:
    recorded = json.loads((golden("ssql") / "schedule.json").read_text())
    for name, entry in recorded.items():
        if name != "bit_draws" and (SHIPPED / entry["config"]).exists():
            train = read_config(command_of(entry["config"]), f"configs/{entry['config']}").TRAIN
            found = train.LR_SCHEDULER.BASE_LR, train.EPOCHS
            assert found == (entry["base_lr"], entry["epochs"])
    draws = recorded["bit_draws"]
    quant = read_config("ssl", "configs/cifar/resnet18_ssql_simsiam_cifar.yaml").QUANT
    assert [list(quant.W.BIT_RANGE), list(quant.A.BIT_RANGE)] == [draws["w_range"], draws["a_range"]]


def test_defaults_are_the_authors() -> None:
    expected = {
        "SEED": None, "OUTPUT": "", "DEVICE": None, "WORLD_SIZE": 1, "EVALUATION_DOMAIN": None,
        "MODEL.ARCH": "", "MODEL.CHECKPOINT": "", "MODEL.PRETRAINED": "", "MODEL.NUM_CLASSES": 0,
        "MODEL.INPUTSHAPE": [-1, -1],
        "TRAIN.SYNC_BN": False, "TRAIN.LINEAR_EVAL": False, "TRAIN.WARMUP_FC": False, "TRAIN.EPOCHS": 0,
        "TRAIN.DATASET": "", "TRAIN.BATCH_SIZE": 1, "TRAIN.NUM_WORKERS": 0, "TRAIN.PRINT_FREQ": 1,
        "TRAIN.LR_SCHEDULER.TYPE": None, "TRAIN.LR_SCHEDULER.BASE_LR": 0, "TRAIN.LR_SCHEDULER.DECAY_MILESTONES": [],
        "TRAIN.LR_SCHEDULER.DECAY_RATE": 0.1, "TRAIN.OPTIMIZER.NAME": "", "TRAIN.OPTIMIZER.MOMENTUM": 0,
        "TRAIN.OPTIMIZER.WEIGHT_DECAY": 0, "TRAIN.LOSS.CRITERION.NAME": "", "TRAIN.LOSS.CRITERION.LPLOSS.P": 2.0,
        "AUG.TRAIN.RANDOMRESIZEDCROP.SCALE": [0.08, 1.0], "AUG.TRAIN.RANDOMRESIZEDCROP.INTERPOLATION": "bilinear",
        "AUG.TRAIN.RESIZE.KEEP_RATIO": True, "AUG.TRAIN.COLOR_JITTER.SATURATION": 0.2,
        "AUG.TRAIN.RANDOMERASE.MODE": "const", "AUG.TRAIN.MIX.MODE": "batch", "AUG.TRAIN.NORMLIZATION.MEAN": [],
        "QUANT.TYPE": "", "QUANT.BIT_CONFIG": [], "QUANT.W.QUANTIZER": None, "QUANT.W.BIT": 8,
        "QUANT.W.BIT_RANGE": [2, 9], "QUANT.W.SYMMETRY": True, "QUANT.W.GRANULARITY": "channelwise",
        "QUANT.A.BIT": 8, "QUANT.A.BIT_RANGE": [4, 9], "QUANT.A.SYMMETRY": False, "QUANT.A.GRANULARITY": "layerwise",
        "QUANT.A.OBSERVER_METHOD.NAME": "MINMAX", "QUANT.A.OBSERVER_METHOD.ALPHA": 1e-4,
        "QUANT.BIT_ASSIGNER.W_BIT_CHOICES": [2, 4, 8], "QUANT.FINETUNE.BATCHSIZE": 32,
        "SSL.TYPE": None, "SSL.SETTING.DIM": 128, "SSL.SETTING.HIDDEN_DIM": 2048, "SSL.SETTING.T": 0.07,
        "SSL.SETTING.MOCO_K": 65536, "SSL.SETTING.MOMENTUM": 0.999, "SSL.SETTING.MLP": True,
    }  # fmt: skip
    found = flat(Config())
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("QUANT.W.BIT=1", "0 (not quantized) or 2 to 16"),
        ("SSL.SETTING.DIM=999999999999", "less than 1048576"),
        ("SSL.SETTING.DIM=1048575", "DIM=1048575 and HIDDEN_DIM=2048 make a layer of more than 1073741824 weights"),
        ("TRAIN.LR_SCHEDULER.BASE_LR=1e308", "less than or equal to 1000000000"),
        ("SSL.SETTING.HIDDEN_DIM=1048576", "less than 1048576"),
        ("SSL.SETTING.MOCO_K=16777216", "less than 16777216"),
        ("QUANT.CALIBRATION.SEED=-1", "greater than or equal to 0"),
        ("QUANT.CALIBRATION.SEED=9223372036854775808", "less than or equal to 9223372036854775807"),
        ("QUANT.W.BIT=17", "0 (not quantized) or 2 to 16"),
        ("QUANT.W.BIT_RANGE=[9, 2]", "2 <= first < second <= 17"),
        ("QUANT.W.BIT_RANGE=[2, 2]", "2 <= first < second <= 17"),
        ("QUANT.W.SYMMETRY=False", "True"),
        ("QUANT.A.GRANULARITY=channelwise", "'layerwise'"),
        ("QUANT.A.OBSERVER_METHOD.NAME=PERCENTILE", "'MOMENTUM_MINMAX'"),
        ("QUANT.W.OBSERVER_METHOD.NAME=GAUSSIAN", "'MINMAX'"),
        ("QUANT.BIT_CONFIG=[{conv1: {w: 8}}, {}]", "at most 1"),
        ("QUANT.BIT_CONFIG=[{conv1: {w: 33}}]", "QUANT.BIT_CONFIG.0.conv1.w=33"),
        ("QUANT.W.SCALE=free", "'detached' or 'differentiable'"),
        ("SSL.TYPE=SSQL_MoCo", "does not belong to SSL.TYPE='SSQL_MoCo'; allowed: CrossEntropy"),
        ("SSL.TYPE=SimSaim", "'SimSiam'"),
        ("SSL.SETTING.MOMENTUM=2", "less than or equal to 1"),
        ("TRAIN.DATASET=cifar-10", "'cifar10'"),
        ("TRAIN.LR_SCHEDULER.DECAY_MILESTONES=[80, 60]", "ascending"),
        ("AUG.TRAIN.NORMLIZATION.STD=[0, 1, 1]", "greater than 0"),
        ("AUG.TRAIN.NORMLIZATION.MEAN=[0.5]", "3 numbers each"),
        ("AUG.TRAIN.RANDOMRESIZEDCROP.SCALE=[1.0, 0.5]", "ascending"),
        ("AUG.TRAIN.NORMALIZATION.MEAN=[0.5]", "'AUG.TRAIN.NORMLIZATION.MEAN'"),
        ("MODEL.INPUTSHAPE=[32, 0]", "two sizes in pixels"),
    ],
)
def test_what_is_refused(argument: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        read_config("ssl", "configs/cifar/resnet18_ssql_simsiam_cifar.yaml", [argument])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_and_the_command_lines_defaults() -> None:
    name = "configs/cifar/resnet18_ssql_simsiam_cifar.yaml"
    config = read_config("ssl", name)
    assert (config.TRAIN.NUM_WORKERS, config.TRAIN.PRINT_FREQ, config.OUTPUT) == (WORKERS, 50, "./train_log")
    config = read_config("ssl", name, ["TRAIN.PRINT_FREQ=7", "SEED=3"], {"TRAIN.PRINT_FREQ": 9, "OUTPUT": "12"})
    assert (config.TRAIN.PRINT_FREQ, config.SEED, config.OUTPUT) == (9, 3, "12")


def test_nothing_behind_a_key_is_empty_text_where_the_key_holds_text() -> None:
    config = read_config("ssl", "configs/cifar/resnet18_ssql_simsiam_cifar.yaml", ["TRAIN.LOSS.CRITERION.NAME="])
    assert config.TRAIN.LOSS.CRITERION.NAME == "" and config.criterion == "CosineSimilarity"


def test_the_table_names_every_shipped_config_once_and_no_other() -> None:
    table = (ROOT / "ssql" / "CONFIGS.md").read_text()
    commands = re.findall(r"(?:RUN4|RUN8|python -m ssql|`ssql) (\w+) --config \./configs/(\S+)([^`]*)`", table)
    plain = [(command, name) for command, name, rest in commands if "TRAIN.DATASET" not in rest]
    assert sorted(plain) == sorted((command_of(name), name) for name in NAMES)


def test_reading_a_config_does_not_import_torch() -> None:
    code = "import sys, ssql.config; assert 'torch' not in sys.modules; assert 'timm' not in sys.modules"
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'ssql' / 'src')!r}]; "
    subprocess.run([sys.executable, "-c", paths + code], check=True)
