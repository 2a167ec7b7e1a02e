"""`bsq train`: float training, the start of conversion; the recipe of the authors' float net."""

from torch import nn
from torch.optim import Optimizer

from bsq import load
from bsq.commands import opening, printed, training
from bsq.commands.evaluating import Evaluator, figures
from bsq.options import NetOptions, SgdOptions
from lowbit.evaluate.classify import Scores
from lowbit.options import OptimOptions, RunOptions
from lowbit.train.loop import Result
from lowbit.train.optim import make_optimizer
from lowbit.train.supervised import Supervised


def evaluate(options: RunOptions, net: NetOptions) -> Scores | None:
    """`--evaluate`: a float net as it is, with its own activations. None after a dry run."""
    with opening.open_session(options, net) as session:
        opened = opening.open_net(session, net, required=not options.pretrained)
        if opened.saved is not None:
            load.load_float_(opened.model, opened.saved)
        evaluator = Evaluator(session, net, opened.recipes[1])
        if evaluator.planned(opened.model):
            return None
        with session.open_folder("train", opening.described(net), evaluator.sizes) as folder:
            session.say(*printed.parameters(opened.model))
            scores = evaluator.scores(opened.model)
            session.say(printed.accuracy(scores), printed.test_line(scores))
            session.write_result(folder, {**figures(scores), **evaluator.sizes})
    return scores


def train(options: RunOptions, net: NetOptions, sgd: SgdOptions, optim: OptimOptions) -> Result | None:
    """Train from a seeded start, `--pretrained` or `--model`. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    with opening.open_session(options, net) as session:
        opened = opening.open_net(session, net)
        if opened.saved is not None:
            load.load_float_(opened.model, opened.saved, new_head=True)
        model = training.student(session, opened.model)

        def optimizer(net: nn.Module) -> Optimizer:
            rates = {"lr": sgd.lr, "momentum": sgd.momentum, "weight_decay": sgd.weight_decay}
            return make_optimizer(net.parameters(), optim.opt or training.SGD, **rates)

        evaluator = Evaluator(session, net, opened.recipes[1])
        header, objective = opened.header(model), Supervised(model, optimizer)
        job = training.training_job(evaluator, "train", objective, opened.recipes[0], header, sgd, optim)
        training.check(job)
        if job.planned(evaluator.facts):
            return None
        with job.open() as folder:
            session.say(*printed.parameters(model))
            result = job.fit(folder, [training.Validation(evaluator, job, folder)])
            training.finish(job, folder, result, {})
    return result
