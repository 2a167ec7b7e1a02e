"""How `linear` and `default` judge the net that they train: on the way, and with batch norm estimated anew."""

from collections.abc import Iterable, Mapping

from torch import nn

from lowbit.data.batch import Batch
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.evaluate.batchnorm import batchnorm_anew
from lowbit.evaluate.classify import Batches, Scores, classify
from lowbit.evaluate.features import extract
from lowbit.train.folder import RunFolder
from lowbit.train.protocol import Clock, Objective
from lowbit.train.session import Session
from ssql.cached import FeatureLoader
from ssql.watch import epoch_lines


class Judge:
    """A net, and how evaluation shows it pictures.

    Args:
        session: of the command.
        net: the classifier, on the device.
        shown: the recipe of evaluation.
        batch: pictures of an evaluation batch.
    """

    def __init__(self, session: Session, net: nn.Module, shown: Recipe, batch: int) -> None:
        self.session, self.net, self.shown, self.batch = session, net, shown, batch

    def pictures(self, pictures: Pictures, recipe: Recipe | None = None) -> EvalLoader:
        """This process's batches of a set, under the recipe of evaluation or another one."""
        return EvalLoader(pictures, recipe or self.shown, batch_size=self.batch, **self.session.loader_options())

    def features(self, pictures: EvalLoader, batch: int, shuffle: bool = True) -> FeatureLoader:
        """What the net's last layer gets of a set, in batches of `batch` over all processes.

        Raises:
            Stopped: a stop signal came.
        """
        accelerator = self.session.accelerator
        found = extract(self.net, pictures, accelerator)
        place = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        return FeatureLoader(found, global_batch=batch, seed=self.session.options.seed, shuffle=shuffle, **place)

    def batches(self, pictures: Pictures, cached: bool) -> Batches:
        """What is classified: pictures, or features that were taken once."""
        loader = self.pictures(pictures)
        return list(self.features(loader, self.batch, shuffle=False).epoch(0)) if cached else loader

    def with_norm_anew(self, batches: Iterable[Batch], test: Pictures) -> Scores:
        """The accuracy on `test` with batch norm's statistics estimated anew, at the bits, from `batches`.

        The classifier stays; the net is as it was afterwards.

        Raises:
            Stopped: a stop signal came.
        """
        with batchnorm_anew(self.net, batches, self.session.accelerator):
            return classify(self.net, self.pictures(test), self.session.accelerator)


def accuracy_line(scores: Scores) -> str:
    """As the authors' program prints it."""
    return f" * Acc@1 {scores.top1:.3f} Acc@5 {scores.top5:.3f}"


class Watch:
    """A probe for `Run.probes`: the epoch's log lines, and figures of `top1`, `top5`, `loss` where they are due.

    Args:
        session: of the command.
        folder: of the run.
        sets: "test", and "val" where part of the training set is held out; this adds `val_top1`.
        every: epochs between two evaluations, 0 and the last included: 20 judges epoch 20, 40, ... and the last.
    """

    def __init__(self, session: Session, folder: RunFolder, sets: Mapping[str, Batches], every: int) -> None:
        self.session, self.folder, self.sets, self.every = session, folder, sets, every

    def due(self, clock: Clock) -> bool:
        """After every epoch, or as the authors have it: after those above 0 that `every` divides, and the last."""
        regular = clock.epoch % self.every == 0 and (clock.epoch > 0 or self.every == 1)
        return regular or clock.epoch + 1 == clock.epochs

    def __call__(self, clock: Clock, objective: Objective) -> dict[str, float]:
        """Figures of the epoch that ended, {} where none are due."""
        if self.session.accelerator.is_main_process:
            self.session.say(*epoch_lines(self.folder.metrics, clock, {"Loss": "loss", "Acc@1": "top1"}))
        if not self.due(clock):
            return {}
        student, accelerator = objective.get_submodule("student"), self.session.accelerator
        scores = classify(student, self.sets["test"], accelerator)
        self.session.say(accuracy_line(scores))
        values = {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}
        if "val" in self.sets:
            values["val_top1"] = classify(student, self.sets["val"], accelerator).top1
        return values
