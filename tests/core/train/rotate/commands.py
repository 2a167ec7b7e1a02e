"""`rotate train`: from options to the files of a run."""

from dataclasses import asdict

from lowbit.data.views import view_recipes
from lowbit.evaluate.monitor import monitor_pretraining
from lowbit.export.packed import save_packed
from lowbit.options import RunOptions, SgdOptions
from lowbit.train.batch import of_job
from lowbit.train.job import Job
from lowbit.train.optim import stated_schedule
from lowbit.train.protocol import Stage
from lowbit.train.session import Session
from rotate.load import FORMAT, student
from rotate.objective import Rotation


def train(options: RunOptions, dataset: str, arch: str, sgd: SgdOptions) -> None:
    """Train with k-NN on the way, then pack the student."""
    with Session("rotate", options, dataset) as session:
        pictures, test = session.pictures("train"), session.pictures("test")
        views, shown = view_recipes(dataset, pictures)
        objective = Rotation(session.place(student(arch), sync_batchnorm=True), sgd)
        batch = of_job(sgd.train_batch, session.accelerator.num_processes, accumulate=options.accumulate)
        job = Job(
            session, "train", [Stage(objective, sgd.epochs, {"main": stated_schedule(sgd)})],
            session.loader(pictures, views, batch), batch, prefixes={"student.": ""}, best="knn_top1",
            header={"format": FORMAT, "package": "rotate", "arch": arch},
            described={"dataset": dataset, "arch": arch, **asdict(sgd)}, shared=sgd.compared,
        )  # fmt: skip
        job.check()
        if job.planned({"dataset": dataset}):
            return
        with job.open() as folder:
            sets = session.eval_loader(pictures, shown), session.eval_loader(test, shown)
            monitor = monitor_pretraining("student", *sets, session, every=1)
            result = job.fit(folder, [monitor])
            job.write_result(folder, result, {})
            made = {"arch": arch, "args": {"num_classes": 4}}
            job.export(folder, result, lambda path: save_packed(objective.student, path / "packed.safetensors", made))
