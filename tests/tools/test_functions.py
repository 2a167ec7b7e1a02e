"""Each command of each method as a function, called twice: as installed, and when every submodule has been imported."""

import importlib
import logging
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lowbit.errors import InputError
from lowbit.functions import line_of
from lowbit.loading import load
from lowbit.outcome import Outcome

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
NET, LAST = "cifar_resnet8_1x1", "checkpoint.pth.tar"
PICTURES: dict[str, Any] = {"limit_train": 20, "limit_eval": 20}
DIGITS: dict[str, Any] = {"dataset": "digits", **PICTURES}
STEP: dict[str, Any] = {"max_steps": 1, **PICTURES}
KEYS = ("configs/base/digits.yaml", "TRAIN.EPOCHS=1", "TRAIN.BATCH_SIZE=10")
PROBE = (*KEYS, "MODEL.PRETRAINED=ssl/backbone.safetensors", "TRAIN.LINEAR_EVAL=True", "TRAIN.LR_SCHEDULER.BASE_LR=1")
SSQL = ("SSL.TYPE=SimSiam", "TRAIN.EPOCHS=1")
US3L = ("MODEL.OFA.CALIBRATION_PICTURES=10", "TRAIN.GLOBAL_BATCH=10")
ONE = ("MODEL.OFA.CALIBRATE_BN=True", "MODEL.OFA.WIDTH_MULT=0.5")
SEED = ("SSL.TYPE=SEED_MSE", "TRAIN.LOSS.CRITERION.NAME=CosineSimilarity", f"MODEL.ARCH={NET}",
        f"DISTILL.TEACHER_ARCH={NET}", f"DISTILL.TEACHER_PRETRAINED=ssl/{LAST}", "DISTILL.TEACHER_DIM=64",
        "DISTILL.TEACHER_HIDDEN_DIM=64", "MODEL.OFA.NUM_SAMPLE_TRAINING=1")  # fmt: skip
S2BNN: dict[str, Any] = {"student": NET, "epochs": 1, "batch_size": 10, "probe_every": 0}
QUANT: dict[str, Any] = {"arch": NET, "epochs": 1, "batch_size": 10, "calibration": 0, **DIGITS}
CALLS: dict[str, list[Call]] = {
    "bsq": [
        ("train", (), {"arch": NET, "epochs": 1, "train_batch": 10, "output": Path("float"), **DIGITS}),
        ("convert", (), {"arch": NET, "model": Path("float", LAST), "output": "bits", "Nbits": 3, **DIGITS}),
        ("prune", (), {"arch": NET, "model": f"bits/{LAST}", "epochs": 2, "schedule": [1, 2], "output": "pruned",
                       "train_batch": 10, "L1": True, "max_steps": 1, **DIGITS}),
        ("finetune", (), {"arch": NET, "model": f"bits/{LAST}", "evaluate": True, "seed": None, **DIGITS}),
        ("report", (), {"model": f"bits/{LAST}", "output": "report"}),
        ("export", (), {"model": f"bits/{LAST}", "keep_batch_ranges": True, "output": "packed"}),
    ],
    "ssql": [
        ("pretrain", (*KEYS, *SSQL), {"probe_every": 0, "output": "ssl", **PICTURES}),
        ("linear", PROBE, {"output": "probe", **STEP}),
        ("default", PROBE, {"output": "default", **STEP}),
        ("sweep", (f"ssl/{LAST}",), {"bits": ["fp", "4w4f"], "probe_epochs": 1, "calibration": 10, **PICTURES}),
        ("configs", (), {}),
        ("draw", (*KEYS, f"MODEL.PRETRAINED=ssl/{LAST}"), {"output": "map", "limit_train": 20}),
    ],
    "us3l": [
        ("pretrain", (*KEYS, *US3L), {"probe_every": 0, "output": "ssl", **PICTURES}),
        ("configs", (), {}),
        ("distill", (*KEYS, *SEED), {"output": "seed", **STEP}),
        ("slimmable", (*KEYS, *US3L, "MODEL.ARCH=s_cifar_resnet8_1x1", "MODEL.OFA.WIDTH_MULT_LIST=[0.5, 1]"),
         {"output": "s", **STEP}),
        ("linear", (*PROBE, *US3L, *ONE), {"output": "probe", **STEP}),
        ("calibrate", (*KEYS, *US3L, f"MODEL.PRETRAINED=ssl/{LAST}"), {"widths": [0.25, 1], "output": "c", **PICTURES}),
        ("sweep", (f"ssl/{LAST}",), {"widths": "0.5,1", "probe_epochs": 1, "calibration": 10, **PICTURES}),
        ("export", (f"ssl/{LAST}",), {"width": 1, "format": "packed", "output": "net", "calibration": 10, **PICTURES}),
    ],
    "s2bnn": [
        ("main_moco", (Path(),), {"method": "contrastive", "step": 2, "moco_k": 20, "dataset": "digits",
                                  "output": "moco", **S2BNN, **STEP}),
        ("main_lincls", (Path(),), {"pretrained": f"moco/{LAST}", "epochs": 1, "batch_size": 10, "output": "lincls",
                                    "dataset": "digits", **STEP}),
        ("report", (f"moco/{LAST}",), {"output": "report"}),
        ("export", (f"moco/{LAST}",), {"output": "packed"}),
    ],
    "sqakd": [
        ("train_fp", (), {"output": "float", **QUANT}),
        ("train_quant", (), {"output": "quant", "wbits": 2, "abits": 2, "use_hessian": False, **QUANT}),
        ("main", (), {"data": ".", "output": "main", "not_quant": True, **QUANT}),
        ("recipe", ("run_cifar10_resnet20/EWGS_W2A2",), {"print": True}),
        ("sweep", ("quant/checkpoint/last_checkpoint.pth",), {"bits": [3, 2], "probe_epochs": 1, **DIGITS}),
        ("export", ("quant/checkpoint/last_checkpoint.pth",), {"output": "packed"}),
    ],
}  # fmt: skip
WITHOUT_OUTPUT = {"recipe", "configs"}
WITHOUT_FIGURES = {"bsq.export", "s2bnn.export", "sqakd.export", "sqakd.recipe"}


def submodules(method: str) -> list[str]:
    package = importlib.import_module(method)
    found = pkgutil.walk_packages(package.__path__, f"{method}.")
    return [module.name for module in found if not module.name.endswith("__main__")]


def called(method: str, call: Call, **more: Any) -> Outcome:
    """The outcome of one call, held against what it should say."""
    name, places, options = call
    outcome = getattr(importlib.import_module(method), name)(*places, **{**options, **more})
    assert isinstance(outcome, Outcome) and bool(outcome.figures) == (f"{method}.{name}" not in WITHOUT_FIGURES)
    assert outcome.folder == (Path(options["output"]) if "output" in options else None)
    assert outcome.folder is None or {"config.json"} < outcome.files.keys()
    if outcome.checkpoint is not None:
        load(outcome.checkpoint)
    return outcome


@pytest.mark.parametrize("method", CALLS)
def test_every_command_is_a_function(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called before and after all submodules are imported, none of which hides it; the first one also runs, twice."""
    monkeypatch.chdir(tmp_path)
    package, root = importlib.import_module(method), logging.getLogger()
    before, names = (list(root.handlers), root.level), [name for name, _, _ in CALLS[method]] + ["demo"]
    assert set(dir(package)) - set(vars(package)) == set(names)
    (tmp_path / "file").touch()
    for more in ({}, {"overwrite": True}):
        assert called(method, CALLS[method][0], max_steps=1, **more).checkpoint is not None
        for name in set(names) - WITHOUT_OUTPUT:
            with pytest.raises(InputError, match="'file' is a file"):
                getattr(package, name)(output="file")
        for name in submodules(method):
            importlib.import_module(name)
    assert (root.handlers, root.level) == before


@pytest.mark.heavy
@pytest.mark.parametrize("method", CALLS)
def test_every_function_runs_twice(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for again in ({}, {"overwrite": True}):
        for call in CALLS[method]:
            called(method, call, **(again if "output" in call[2] else {}))


def test_importing_a_method_imports_no_torch() -> None:
    sources = [str(ROOT / name / "src") for name in ("core", *CALLS)]
    code = f"import sys; sys.path[:0] = {sources}; import {', '.join(CALLS)}; print(bsq.convert.__doc__)\n"
    code += "assert not {'torch', 'timm', 'matplotlib', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_is_wrong_is_an_input_error() -> None:
    import bsq
    import ssql

    with pytest.raises(InputError, match=r"bsq\.train has no option 'epoch'; there are epochs"):
        bsq.train(epoch=3)
    with pytest.raises(InputError, match="Invalid value for '--epochs': 'many'"):
        bsq.train(epochs="many")
    with pytest.raises(InputError, match=r"bsq\.train takes 0 arguments by position, not 1"):
        bsq.train("digits")
    with pytest.raises(InputError, match=r"bsq\.train: lr is given twice"):
        bsq.train(lr=1, learning_rate=2)
    with pytest.raises(InputError, match="download='yes' is a flag: give True or False"):
        bsq.train(download="yes")
    with pytest.raises(InputError, match="Missing option '--config'"):
        ssql.pretrain()
    with pytest.raises(InputError, match="config is given twice"):
        ssql.pretrain("a.yaml", config="b.yaml")
    with pytest.raises(AttributeError, match="'ssql' has no attribute 'train'"):
        ssql.train  # noqa: B018


def test_a_call_is_a_command_line() -> None:
    from bsq.cli import cli as bsq
    from ssql.cli import cli as ssql

    call = {"schedule": (1, 2), "L1": True, "bin": False, "data": Path("a b"), "lr": 1e-5, "act_include": ["x*"]}
    line = ["--schedule=1", "--schedule=2", "--L1", "--data=a b", "--lr=1e-05", "--act-include=x*", "--"]
    assert line_of(bsq.commands["cifar_prune_STE"], "prune", (), call) == line
    line = ["--download", "--config=a.yaml", "--", "TRAIN.EPOCHS=1", "SSL.TYPE=BYOL"]
    places = ("a.yaml", "TRAIN.EPOCHS=1", "SSL.TYPE=BYOL")
    assert line_of(ssql.commands["ssl"], "pretrain", places, {"download": True, "seed": None}) == line
