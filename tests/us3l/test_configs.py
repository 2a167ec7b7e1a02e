"""US3L's tree, the authors' files in it, and the shipped configs against the authors' values."""

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

from lowbit.config.tree import leaves, value_of
from lowbit.config.unused import is_unused
from lowbit.errors import InputError
from us3l.config import Config, read_config
from us3l.names import net_of
from us3l.unused_keys import Command, without_effect

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "us3l" / "src" / "us3l" / "configs"
NAMES = sorted(path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.yaml") if path.parent.name != "base")
FOLDER = {name for name in NAMES if name.startswith("folder/")}
OURS = {"vit/us_vit_tiny_cifar10.yaml", *FOLDER}  # without a file of the authors'
LEFT_OUT = {  # of theirs: pruning, SEED with losses that do not fit it, a net of one width without the full one
    "cifar/resnet18_linear_eval_cifar_prune.yaml",
    "cifar/resnet18_finetune_cifar.yaml",
    "cifar/us_resnet18_seed_mse_cifar.yaml",
    "cifar/us_resnet50_seed_cifar.yaml",
    "cifar/us_mobilenetv2_seed_cifar.yaml",
    "cifar/us_resnet_seed_infonce_cifar.yaml",
    "cifar/s_mobilenetv2_byol_cifar.yaml",
}
TRANSFER = {"aircraft", "dtd", "flowers", "pets"}
DIFFERENT = {  # everywhere: paths of the authors' machines, a key of ours, the log
    "MODEL.PRETRAINED",
    "MODEL.CHECKPOINT",
    "DISTILL.TEACHER_PRETRAINED",
    "TRAIN.GLOBAL_BATCH",
    "TRAIN.PRINT_FREQ",
}
DIFFERENT_IN = {
    "cifar/resnet18_simsiam_cifar.yaml": {"SSL.TYPE": ("US_SimSiam", "SimSiam")},
    "cifar/s_resnet18_byol_cifar.yaml": {"MODEL.OFA.DISTILL_FEATURE_CRITERION": ("", "MSELoss")},
}


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


def test_ours_have_the_values_of_the_authors_in_every_live_key(raw: dict[str, dict[str, Any]], theirs: Path) -> None:
    assert {name for name in raw if name.split("/")[0] not in TRANSFER} - LEFT_OUT == set(NAMES) - OURS
    for name in set(NAMES) - OURS:
        command = command_of(name)
        ours, other = read_config(command, f"configs/{name}"), read_config(command, theirs / name)
        a, b = flat(ours), flat(other)
        keys = {*live(command, ours), *live(command, other)} - DIFFERENT
        assert {key: (b[key], a[key]) for key in keys if a[key] != b[key]} == DIFFERENT_IN.get(name, {}), name


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_works_from_anywhere_and_says_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.WARNING)
    config = read_config(command_of(name), f"./configs/{name}")
    assert caplog.messages == []
    header = "".join(
        itertools.takewhile(lambda line: line.startswith("#"), (SHIPPED / name).read_text().splitlines(keepends=True))
    )
    assert f"--config configs/{name} --output OUT" in header
    assert re.search(r"us3l (\w+)", header[header.index("Command: ") :])[1] == command_of(name)  # type: ignore[index]
    if "--num_processes" in header:
        processes = re.search(r"--num_processes (\d+)", header)[1]  # type: ignore[index]
        assert int(processes) * config.TRAIN.BATCH_SIZE == config.TRAIN.GLOBAL_BATCH
    elif name in FOLDER:
        assert (config.TRAIN.DATASET, config.MODEL.NUM_CLASSES) == ("folder", 0)
        assert config.TRAIN.BATCH_SIZE == config.TRAIN.GLOBAL_BATCH and config.MODEL.side in (64, 224)
    else:
        assert command_of(name) == "calibrate"


def test_the_table_names_every_shipped_config_once_and_no_other() -> None:
    table = (ROOT / "us3l" / "CONFIGS.md").read_text()
    commands = re.findall(r"(?:RUN4|RUN8|us3l) (\w+) --config \./configs/(\S+)[^`]*`", table)
    assert sorted(commands) == sorted((command_of(name), name) for name in NAMES)


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("MODEL.OFA.WIDTH_MULT_RANGE=[1.0, 0.25]", "ascending"),
        ("MODEL.OFA.WIDTH_MULT_RANGE=[0, 1.0]", "greater than 0"),
        ("MODEL.OFA.WIDTH_MULT_LIST=[]", "one entry or more, each once"),
        ("MODEL.OFA.WIDTH_MULT_LIST=[1.0, 0.999999999]", "one entry or more, each once"),
        ("MODEL.OFA.DISTILL_FEATURE_NAME=[]", "one entry or more, each once"),
        ("MODEL.OFA.NUM_SAMPLE_TRAINING=0", "greater than or equal to 1"),
        ("MODEL.OFA.SAMPLE_SCHEDULER=B", "'' or 'A'"),
        ("MODEL.OFA.STEP_PER=pass", "'width' or 'batch'"),
        ("MODEL.OFA.WIDTH_MULTI=0.5", "'MODEL.OFA.WIDTH_MULT'"),
        ("MODEL.OFA.REGULARIZER_DECAY_BINS=0", "greater than or equal to 1"),
        ("TRAIN.LOSS.CRITERION.NAME=DINOLoss", "'InfoNCEv2_distill'"),
        ("SSL.TYPE=SimCLR_Momentun", "'SimCLR_Momentum'"),
        ("SSL.SETTING.MOMENTUM=2", "less than or equal to 1"),
        ("TRAIN.DATASET=cifar-10", "'cifar10'"),
    ],
)
def test_what_is_refused(argument: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        read_config("ssl", "configs/cifar/us_resnet18_simclr_featdistill_cifar.yaml", [argument])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


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
