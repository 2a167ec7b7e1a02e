"""`bsq train`: float training, the start of conversion; the recipe of the authors' float net."""

from bsq import load
from bsq.commands import opening, printed, training
from bsq.commands.evaluating import Evaluator
from bsq.options import NetOptions
from lowbit.evaluate.classify import Scores
from lowbit.options import RunOptions, SgdOptions
from lowbit.train.loop import Result
from lowbit.train.optim import stated_optimizer
from lowbit.train.supervised import Supervised


def evaluate_float(options: RunOptions, net: NetOptions) -> Scores | None:
    """`--evaluate`: a float net as it is, with its own activations. None after a dry run."""
    with opening.open_session(options, net) as session:
        opened = opening.open_net(session, net, required=not options.pretrained)
        if opened.saved is not None:
            load.load_float_(opened.model, opened.saved)
        return Evaluator(session, net, opened.recipes[1]).run("train", opened.model)


def train(options: RunOptions, net: NetOptions, sgd: SgdOptions) -> Result | None:
    """Train from a seeded start, `--pretrained` or `--model`. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    with opening.open_session(options, net) as session:
        opened = opening.open_net(session, net)
        if opened.saved is not None:
            load.load_float_(opened.model, opened.saved, new_head=True)
        model = session.place(opened.model, sync_batchnorm=True)
        objective = Supervised(model, lambda student: stated_optimizer(student.parameters(), sgd))
        evaluator = Evaluator(session, net, opened.recipes[1])
        accuracies = training.Accuracies(session.resumed())
        job = training.training_job(
            evaluator, "train", objective, opened.recipes[0], opened.header(model), sgd, accuracies=accuracies
        )
        training.check(job)
        if job.planned(evaluator.facts(model)):
            return None
        with job.open() as folder:
            session.say(*printed.parameters(model))
            result = job.fit(folder, [training.Validation(evaluator, job, folder, accuracies)])
            training.finish(job, folder, result, {})
    return result
