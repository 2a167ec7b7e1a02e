"""`s2bnn demo`: the digits; a small binary net distilled without labels, beside the same one trained by contrast.

Both are trained in two steps, from the same weights, on the same pictures for the same number of steps; the teacher is
the same net with real values, trained by contrast. Each is evaluated by a probe with few labels and by k-NN: a table, a
picture, `result.json`. Random weights at the same step tell what training is worth: if one of the nets is useless
(`lowbit.demo`), or has collapsed, the demo ends with 1.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit.checkpoint.write import CHECKPOINT
from lowbit.demo import NEEDED, open_demo, run_stage, save_random_backbone, verdict_without_labels, write_demo
from lowbit.evaluate.table import Row
from lowbit.options import RunOptions
from lowbit.quant.binary import STEPS
from s2bnn.commands import FILES, main_lincls, main_moco
from s2bnn.options import LinclsOptions, PretrainOptions

ARCH = "cifar_resnet8_1x1"
METHODS = ("distillation", "contrastive")  # columns of the table
EPOCHS = {0: 30, 1: 15, 2: 15}  # by step
COMMON: dict[str, Any] = {
    "dataset": "digits", "student": ARCH, "arch": ARCH, "batch_size": 64, "lr": 0.003, "weight_decay": 0.0, "cos": True,
    "moco_dim": 64, "moco_k": 512, "moco_t": 0.2, "mlp": True, "aug_plus": True, "keep": 0,
}  # fmt: skip
PROBE: dict[str, Any] = {"epochs": 40, "schedule": (24, 32), "lr": 1.0, "batch_size": 64}
LABELLED = 200  # pictures; with all of them random real-valued features are nearly as good, digits being easy
FIGURE = "probe_top1_retrained"  # of a row: that nets are judged by


def demo(options: RunOptions) -> int:
    """Run it all into `options.output`; an earlier demo there is replaced. Returns the exit code.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
        Stopped: a stop signal came.
    """
    start, config = time.perf_counter(), {"training": COMMON, "epochs": EPOCHS, "probe": PROBE}
    with open_demo(options, Path("runs/s2bnn-demo"), config, FILES) as (options, folder):
        stages = Stages(options, folder.path)
        teacher = stages.trained("teacher", method="contrastive", step=0)
        series = {method: stages.two_steps(method) for method in METHODS}
        random = [stages.random(step) for step in STEPS]
        rows = [{"method": "teacher", **teacher}]
        rows += [{"method": name, **row} for name, found in series.items() for row in found]
        verdicts = [verdict_without_labels(row, row, random[row["step"]], NEEDED, FIGURE) for row in rows]
        facts = {"rows": rows, "random": random, "nets": verdicts, "probe_needed": NEEDED, "labelled": LABELLED}
        facts |= {"seed": options.seed, "global_batch": COMMON["batch_size"], "seconds": time.perf_counter() - start}
        named = {f"{row['method']}, step {row['step']}": net for row, net in zip(rows, verdicts, strict=True)}
        return write_demo(folder, series, (FIGURE, "knn_top1"), "binary", named, facts)


class Stages:
    """The demo's commands, each in a folder of its own."""

    def __init__(self, options: RunOptions, folder: Path) -> None:
        self.options, self.folder = options, folder

    def two_steps(self, method: str) -> list[Row]:
        """A student of a method after each step, the second going on from the first."""
        given = {"teacher_path": self.folder / "teacher" / CHECKPOINT} if method == "distillation" else {}
        first, second = f"{method} 1", f"{method} 2"
        rows = [self.trained(first, method=method, step=1, **given)]
        before = self.folder / first / CHECKPOINT
        return [*rows, self.trained(second, method=method, step=2, model_path=before, **given)]

    def trained(self, name: str, *, step: int, **given: Any) -> Row:
        """A pretraining, and its evaluation."""
        own = PretrainOptions(**{**COMMON, **given}, step=step, epochs=EPOCHS[step], probe_every=EPOCHS[step])
        what = f"training ({name}), {own.epochs} epochs"
        found = run_stage(self.folder / name, what, lambda options: main_moco.main_moco(options, own), self.options)
        kept = {key: found[key] for key in ("knn_top1", "z_std_relative")}
        return {**self.probed(name, step, CHECKPOINT), **kept}

    def random(self, step: int) -> Row:
        """The evaluation of the weights that trainings start from."""
        name = f"random {step}"
        save_random_backbone(ARCH, self.options.seed, self.folder / name / "backbone.safetensors", step)
        return self.probed(name, step, "backbone.safetensors")

    def probed(self, name: str, step: int, file: str) -> Row:
        """A linear evaluation with few labels."""
        own = LinclsOptions(dataset="digits", weights=self.folder / name / file, cache_features=True, **PROBE)
        few = replace(self.options, limit_train=min(LABELLED, self.options.limit_train or LABELLED))
        what = f"evaluating ({name})"
        found = run_stage(self.folder / name / "lincls", what, lambda given: main_lincls.main_lincls(given, own), few)
        return {"variant": STEPS[step].removeprefix("binary "), "step": step, FIGURE: found["top1"]}
