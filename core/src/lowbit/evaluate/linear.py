"""Linear evaluation: a classifier trained on a frozen net, or fine-tuning of the whole net; its figures on the way.

He et al., CVPR 2020 (arXiv 1911.05722), Sec. 4.1: the net stays in evaluation mode, only its last layer is trained.
A command builds its net and brings it to its bits or width; `LinearEvaluation` is the rest. Features are taken once
where every epoch shows the same pictures to a frozen net.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.data.fixed import FixedPictures
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.evaluate.batchnorm import check_pictures, reestimated_batchnorm
from lowbit.evaluate.cached import FeatureLoader, FromFeatures, cached, cached_batches
from lowbit.evaluate.classify import Batches, Scores, classify
from lowbit.models.heads import linear_classifier
from lowbit.train.bn_statistics import batchnorms
from lowbit.train.epochs import Due, print_epoch_lines
from lowbit.train.folder import RunFolder
from lowbit.train.job import Job
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe, Result
from lowbit.train.session import Session
from lowbit.train.supervised import Supervised

EVAL_BATCH = 100  # pictures

log = logging.getLogger(__name__)


class LinearEvaluation:
    """What is trained with labels, and on what.

    Args:
        session: of the command.
        net: the classifier, at its bits or width, on the device.
        frozen: only its last layer is trained; else all of it.
        train: training pictures.
        test: test pictures.
        held: those that `--val-split` holds out of the training set.
        views: the recipe of training.
        shown: the recipe of evaluation.
        batch: pictures of an evaluation batch.
    """

    def __init__(
        self, session: Session, net: nn.Module, *, frozen: bool, train: Pictures, test: Pictures,
        held: Pictures | None, views: Recipe, shown: Recipe, batch: int,
    ) -> None:  # fmt: skip
        self.session, self.net, self.frozen, self.batch = session, net, frozen, batch
        self.train, self.test, self.held, self.views, self.shown = train, test, held, views, shown
        self._sets: list[Batches] = []
        self._features: FeatureLoader | None = None

    @property
    def caches(self) -> bool:
        """Whether features are taken once."""
        return self.frozen and not self.views.is_random

    @property
    def facts(self) -> dict[str, Any]:
        """As `config.json`, `result.json` and a dry run say it."""
        return {
            "protocol": "probe" if self.frozen else "training",
            "classes": len(self.train.classes),
            "features": "cached" if self.caches else "computed",
            "train_transform": "evaluation" if self.views == self.shown else "training",
        }

    def objective(self, optimizer: Callable[[nn.Module], Optimizer]) -> Supervised:
        """Cross-entropy of what is trained."""
        return (linear_probe if self.frozen else Supervised)(self.net, optimizer)

    def loader(self, pictures: Pictures, recipe: Recipe) -> EvalLoader:
        """This process's evaluation batches of a set."""
        return self.session.eval_loader(pictures, recipe, self.batch)

    def open_sets(self, job: Job) -> None:
        """Make ready what `fit` looks at: pictures, or their features, taken now by the net as it is.

        A training set of which some pictures are unreadable is trained on as pictures, where others take their places:
        its steps are those that were planned, and that a resumed run has.

        Args:
            job: the training; its facts say what was made ready.

        Raises:
            Stopped: a stop signal came.
        """
        accelerator, seed = self.session.accelerator, self.session.options.seed
        self._sets = [self.loader(pictures, self.shown) for pictures in (self.test, self.held) if pictures is not None]
        if self.caches:
            self._sets = [cached_batches(self.net, pictures, accelerator, self.batch) for pictures in self._sets]
            seen = self.loader(self.train, self.views)
            found = cached(self.net, seen, accelerator, global_batch=job.batch.total, seed=seed)
            whole = len(found.features.x) == len(self.train)
            self._features = found if whole else None
            job.facts["features"] = "cached" if whole else "computed"
            if not whole and accelerator.is_main_process:
                log.warning("some training pictures are unreadable, so features are computed in each epoch, not cached")

    def fit(self, job: Job, folder: RunFolder, due: Due, probes: Sequence[Probe] = ()) -> Result:
        """Train, with the log lines of each epoch, with figures where they are due, and with the command's own."""
        lines = print_epoch_lines(self.session, folder, {"Loss": "loss", "Acc@1": "top1"})
        figures = evaluate_student(self.session, *self._sets, due=due)
        return job.fit(folder, [lines, *probes, figures], self._features)

    def run(
        self, job: Job, dataset: str, due: Due, *, prepare: Callable[[], object] = lambda: None,
        probes: Sequence[Probe] = (), figures: Callable[[], Mapping[str, float]] = dict,
        export: Callable[[Path], object] | None = None,
    ) -> Result | None:  # fmt: skip
        """Check, then train, with evaluations on the way, and write the results. None after a dry run.

        Args:
            job: the training.
            dataset: its name, for the plan.
            due: after which epochs it is evaluated.
            prepare: called before a run that does not go on from a checkpoint.
            probes: the command's own.
            figures: further ones, of a finished training.
            export: writes into the run's folder what the command makes of the net.

        Raises:
            InputError: before anything is written.
            Stopped: a stop signal came; what was trained is saved.
        """
        job.check()
        if job.planned({**job.facts, "dataset": dataset}, passes=1 if self.caches else None):
            return None
        if not job.resumed:
            prepare()
        self.open_sets(job)
        with job.open() as folder:
            assert folder is not None  # --output has a default
            result = self.fit(job, folder, due, probes)
            job.write_result(folder, result, figures() if result.finished else {})
            if export is not None:
                job.export(folder, result, export)
        return result

    def reestimated_figures(self, batches: Iterable[Batch]) -> dict[str, float]:
        """`top1_bn`, `top5_bn`, `loss_bn` with batch-norm statistics re-estimated, and their line.

        The classifier stays; the net is as it was afterwards.

        Args:
            batches: see `lowbit.evaluate.batchnorm.reestimated_batchnorm`.

        Raises:
            Stopped: a stop signal came.
        """
        return reestimated_figures(self.session, self.net, self.loader(self.test, self.shown), batches)


def linear_probe(net: nn.Module, optimizer: Callable[[nn.Module], Optimizer]) -> Supervised:
    """Cross-entropy of a net's last layer alone: the rest is frozen, in place, and stays in evaluation mode.

    Args:
        net: timm's, of pictures (B, C, H, W); batches of its features (B, D) are taken, too
            (`lowbit.evaluate.cached`).
        optimizer: builds the optimizer of what is trained.

    Raises:
        InputError: the net does not end in one linear layer.
    """
    _, head = linear_classifier(net)
    net.requires_grad_(False)
    head.requires_grad_(True)
    objective = Supervised(FromFeatures(net), optimizer)
    objective.frozen = ("student.net",)
    return objective


def accuracy_line(scores: Scores) -> str:
    """As the linear evaluations of these papers print it."""
    return f" * Acc@1 {scores.top1:.3f} Acc@5 {scores.top5:.3f}"


def reestimated_figures(session: Session, net: nn.Module, test: Batches, batches: Iterable[Batch]) -> dict[str, float]:
    """`top1_bn`, `top5_bn`, `loss_bn` of a net, and their line; the net is left as it was.

    Args:
        session: of the command.
        net: a classifier on the device.
        test: what is evaluated.
        batches: see `lowbit.evaluate.batchnorm.reestimated_batchnorm`.
    """
    with reestimated_batchnorm(net, batches, session.accelerator):
        scores = classify(net, test, session.accelerator)
    session.say(f"{accuracy_line(scores)} with batch norm re-estimated")
    return {"top1_bn": scores.top1, "top5_bn": scores.top5, "loss_bn": scores.loss}


def looked_at(
    session: Session, net: nn.Module, sets: tuple[Pictures, Pictures | None, Pictures | None],
    recipes: tuple[Recipe, Recipe], calibration: int,
) -> dict[str, Any]:  # fmt: skip
    """What `figures_of` looks at, {} without test pictures.

    Args:
        session: of the command.
        net: whose batch norm is re-estimated.
        sets: training pictures; of the test; held out.
        recipes: of training, of evaluation.
        calibration: pictures that batch norm is re-estimated on, chosen by the seed; 0: none.

    Raises:
        InputError: batch norm would be re-estimated from one picture.
    """
    train, test, held = sets
    if test is None:
        return {}
    loaders = [None if s is None else session.eval_loader(s, recipes[1], EVAL_BATCH) for s in (test, held)]
    found: dict[str, Any] = {"test": loaders[0], "held": loaders[1]}
    if calibration and batchnorms(net):
        fixed = FixedPictures(train, calibration, session.options.seed, session.loader_options())
        check_pictures(net, len(fixed), f"--calibration {calibration} of {len(train)} training pictures")
        found["reestimate"] = partial(fixed.trained, recipes[0])
    return found


def figures_of(
    session: Session, net: nn.Module, test: Batches, held: Batches | None = None,
    reestimate: Callable[[], Iterable[Batch]] | None = None,
) -> dict[str, float]:  # fmt: skip
    """`top1`, `top5`, `loss` of a net, and their line.

    Args:
        session: of the command.
        net: a classifier on the device.
        test: what is evaluated, pictures or features.
        held: held out of the training set (`--val-split`); adds `val_top1`.
        reestimate: batches for `reestimated_figures`, which are added.
    """
    scores = classify(net, test, session.accelerator)
    session.say(accuracy_line(scores))
    values = {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}
    if held is not None:
        values["val_top1"] = classify(net, held, session.accelerator).top1
    return values | ({} if reestimate is None else reestimated_figures(session, net, test, reestimate()))


def evaluate_student(session: Session, test: Batches, held: Batches | None = None, *, due: Due, **more: Any) -> Probe:
    """For `Run.probes`: `figures_of` the objective's `student` where they are due.

    Args:
        session: of the command.
        test: as there.
        held: likewise.
        due: after which epochs.
        more: likewise.
    """

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        return figures_of(session, objective.get_submodule("student"), test, held, **more) if due(clock) else {}

    return probe
