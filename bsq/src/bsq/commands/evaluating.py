"""Evaluation, calibration and the dry run of a network on a command's pictures."""

from typing import Any

import torch
from torch import nn

from bsq.commands import printed
from bsq.commands.opening import described
from bsq.commands.report import summary
from bsq.layers import BitConv2d, BitLinear
from bsq.network import bit_layers
from bsq.options import NetOptions
from lowbit.checkpoint.digest import digest
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe
from lowbit.evaluate.classify import Scores, classify
from lowbit.evaluate.ranges import set_ranges_
from lowbit.models.surgery import of_kind
from lowbit.quant.activations import QuantActivation
from lowbit.quant.calibrate import uncalibrated
from lowbit.quant.places import quantized_activations
from lowbit.train.process import peak_memory
from lowbit.train.session import Session

TRIAL_BATCHES = 2  # timed by a dry run


class Evaluator:
    """What a command finds out about its networks.

    Args:
        session: of the command; its sets are open.
        net: which net, and the evaluated batch.
        recipe: how evaluation prepares pictures.
    """

    def __init__(self, session: Session, net: NetOptions, recipe: Recipe) -> None:
        self.session, self.net, self.recipe = session, net, recipe
        self._seen: tuple[str, Scores] | None = None

    @property
    def test(self) -> Pictures:
        """The evaluated set."""
        return self.session.pictures("test")

    @property
    def sizes(self) -> dict[str, int]:
        """The batch of a command that only evaluates; processes get whole ones."""
        return {"global_batch": self.net.test_batch, "batch_per_process": self.net.test_batch}

    def evaluate(self, model: nn.Module, pictures: Pictures) -> Scores:
        """Evaluate on any set of pictures."""
        loader = self.session.eval_loader(pictures, self.recipe, self.net.test_batch)
        return classify(model, loader, self.session.accelerator)

    def scores(self, model: nn.Module) -> Scores:
        """Evaluate on the test set; a net that computes with the very weights of the last call keeps its figures.

        The authors' programs evaluate the same weights two or three times in a row (before and after a change of form
        that changes nothing); the record shows them all, and one evaluation is enough for it.
        """
        key = fingerprint(self.session.place(model))
        if self._seen is None or self._seen[0] != key:
            self._seen = (key, self.evaluate(model, self.test))
        return self._seen[1]

    def calibrate(self, model: nn.Module, batch: int, *, only_unset: bool = False) -> None:
        """Set running ranges on training pictures (`lowbit.evaluate.ranges`), or only those that its file lacks.

        Raises:
            Stopped: a stop signal came.
        """
        if not only_unset or uncalibrated(model):
            set_ranges_(model, self.session, self.recipe, batch)

    def planned(self, model: nn.Module, evaluations: int = 1, disk: int = 0) -> bool:
        """With `--dry-run` print the plan of an evaluating command, two batches timed; False without it."""
        if not self.session.options.dry_run:
            return False
        some = torch.arange(min(len(self.test), TRIAL_BATCHES * self.net.test_batch))
        trial = self.evaluate(self.session.place(model), self.test.subset(some))
        seconds = evaluations * trial.seconds * len(self.test) / trial.pictures
        plan = {"net": self.net.arch, "parameters": sum(p.numel() for p in model.parameters()), **self.facts(model)}
        plan |= {"pictures": len(self.test), "evaluations": evaluations, "estimated seconds": seconds}
        memory = peak_memory(self.session.accelerator.device)
        self.session.say_facts({**plan, "bytes on disk": disk, "bytes in memory": memory})
        return True

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What a dry run says of the data and of activations."""
        found = "{} of {}".format(*quantized_activations(model))
        return {"dataset": self.net.dataset, "classes": len(self.test.classes), "activations quantized": found}

    def run(self, command: str, model: nn.Module) -> Scores | None:
        """A command that only evaluates; None after a dry run.

        Raises:
            Stopped: a stop signal came.
        """
        if self.planned(model):
            return None
        with self.session.open_folder(command, described(self.net), self.sizes) as folder:
            self.session.say(*printed.parameters(model))
            scores = self.scores(model)
            self.session.say(*printed.planes(model), printed.accuracy(scores), printed.test_line(scores))
            bits = summary(model) if bit_layers(model) else {}
            self.session.write_result(folder, {**scores.results(), **bits, **self.sizes})
        return scores


def fingerprint(model: nn.Module) -> str:
    """A hash of what a net computes with: its plain weights and its activation quantizers."""
    state: dict[str, Any] = {f"{name}.config": q.config for name, q in of_kind(model, QuantActivation).items()}
    for prefix, module in model.named_modules():
        own = module.to_plain() if isinstance(module, BitConv2d | BitLinear) else module
        state.update((*own.named_parameters(prefix, False), *own.named_buffers(prefix, False)))
    return digest(state)
