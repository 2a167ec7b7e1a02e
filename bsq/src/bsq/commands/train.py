"""Float training, the start of conversion: SGD with momentum and steps, the recipe of the authors' float net."""

from torch import nn
from torch.optim import SGD

from bsq import load
from bsq.commands import opening, printed
from bsq.commands.evaluating import Session, figures
from bsq.commands.training import Phase, run_phase, student
from bsq.options import NetOptions, SgdOptions
from lowbit.evaluate.classify import Scores
from lowbit.options import RunOptions
from lowbit.train.loop import Result
from lowbit.train.supervised import Supervised


def evaluate(options: RunOptions, net: NetOptions) -> Scores | None:
    """`bsq train --evaluate`: a float net as it is, with its own activations. None after a dry run."""
    with Session(options, net) as session:
        return _evaluate(session, options, net)


def _evaluate(session: Session, options: RunOptions, net: NetOptions) -> Scores | None:
    model, saved, (_, recipe), _ = opening.open_net(session, net, required=not options.pretrained)
    if saved is not None:
        load.load_float_(model, saved)
    if session.planned(model, recipe):
        return None
    sizes = session.batch_sizes()
    with session.folder("train", **sizes) as folder:
        session.say(*printed.parameters(model))
        scores = session.scores(model, recipe)
        session.say(printed.accuracy(scores), printed.test_line(scores))
        session.write_result(folder, {**figures(scores), **sizes})
    return scores


def train(options: RunOptions, net: NetOptions, sgd: SgdOptions) -> Result | None:
    """`bsq train`: from a seeded start, `--pretrained` or `--model`. None after a dry run."""
    with Session(options, net) as session:
        return _train(session, options, net, sgd)


def _train(session: Session, options: RunOptions, net: NetOptions, sgd: SgdOptions) -> Result | None:
    model, saved, recipes, head = opening.open_net(session, net)
    if saved is not None:
        load.load_float_(model, saved, new_head=True)

    def optimizer(student: nn.Module) -> SGD:
        return SGD(student.parameters(), lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)

    objective = Supervised(student(session, model), optimizer)
    return run_phase(session, sgd, Phase(command="train", objective=objective, recipes=recipes, header=head))
