"""What `ssql ssl` does after each epoch: the authors' log lines, k-NN and collapse figures, copies of the weights."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import nn

from lowbit.checkpoint.write import write_checkpoint
from lowbit.data.loader import EvalLoader
from lowbit.evaluate.collapse import collapse_probe
from lowbit.evaluate.knn import K, knn_probe
from lowbit.train.folder import RunFolder
from lowbit.train.log import read_metrics
from lowbit.train.process import on_main
from lowbit.train.protocol import Clock, Objective
from lowbit.train.session import Session
from ssql import load
from ssql.config import CRITERIA, Config


def kept(clock: Clock) -> bool:
    """Whether the authors keep a copy of this epoch: every 20th and 50th from 0 on, and the last."""
    return clock.epoch % 20 == 0 or clock.epoch % 50 == 0 or clock.epoch + 1 == clock.epochs


def epoch_lines(metrics: Path, clock: Clock, shown: Mapping[str, str]) -> Iterator[str]:
    """An epoch's log lines as the authors print them: each value of the interval, and its mean since the epoch began.

    Args:
        metrics: the run's file of lines.
        clock: of the finished epoch.
        shown: {name in the line: key of the metrics}.
    """
    totals, before = dict.fromkeys(shown.values(), 0.0), 0
    for line in read_metrics(metrics):
        if line["event"] == "step" and line["epoch"] == clock.epoch:
            step = line["step"] - clock.done + clock.steps_per_epoch
            totals = {key: total + line[key] * (step - before) for key, total in totals.items()}
            before = step
            values = (f"{name}: {line[key]:.3f}({totals[key] / step:.3f})" for name, key in shown.items())
            yield "\t".join((f"Epoch: [{clock.epoch}][{step}/{clock.steps_per_epoch}]", *values))


def encoder_of(objective: Objective) -> nn.Module:
    """The net that is judged."""
    return objective.get_submodule("encoder_q")


class Watch:
    """A probe for `Run.probes`; its k-NN and collapse figures make the `eval` line.

    Args:
        session: of the command.
        folder: of the run.
        config: of the run.
        header: of its checkpoints.
        sets: training and test pictures as evaluation shows them; None: no figures.
        every: epochs between two of them.
    """

    def __init__(
        self,
        session: Session,
        folder: RunFolder,
        config: Config,
        header: Mapping[str, object],
        sets: tuple[EvalLoader, EvalLoader] | None,
        every: int,
    ) -> None:
        self.session, self.folder, self.header = session, folder, header
        method = str(config.SSL.TYPE).rpartition("_")[2]
        self.criterion = config.TRAIN.LOSS.CRITERION.NAME or CRITERIA[method][0]
        self.probes = []
        if sets is not None:
            bank, test = sets
            k = min(K, len(bank.pictures))
            self.probes = [
                knn_probe(encoder_of, bank, test, session.accelerator, k=k, every=every),
                collapse_probe(encoder_of, test, session.accelerator, every=every),
            ]

    def __call__(self, clock: Clock, objective: Objective) -> dict[str, float]:
        """Figures of the epoch that ended, {} where none are due."""
        values: dict[str, float] = {}
        for probe in self.probes:
            values |= probe(clock, objective)
        if self.session.accelerator.is_main_process:
            shown = {"Loss": "loss", self.criterion: "loss"}
            self.session.say(*epoch_lines(self.folder.metrics, clock, shown))
        if values:
            top1, std, rank = (values[key] for key in ("knn_top1", "z_std_relative", "effective_rank"))
            self.session.say(f" * k-NN Acc@1 {top1:.3f} z_std*sqrt(D) {std:.3f} effective rank {rank:.1f}")
        if kept(clock):
            on_main(self.session.accelerator, partial(self.copy, clock, objective))
        return values

    def copy(self, clock: Clock, objective: Objective) -> None:
        """`checkpoint_{epoch:04d}.pth.tar`, without optimizer."""
        state = load.state_dict(objective)
        content = {**self.header, "epoch": clock.epoch + 1, "step": clock.done, "state_dict": state}
        write_checkpoint(self.folder.path / f"checkpoint_{clock.epoch:04d}.pth.tar", content, keep_previous=False)
