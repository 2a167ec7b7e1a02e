"""`s2bnn main_moco`: a pretraining without labels, of one method at one step, from the options to the files of a run.

Deviations from the authors' program: copies by epoch (`checkpoint_0199.pth.tar`) hold the weights alone, and `--keep`
of them stay; `checkpoint.pth.tar` is what `--resume` goes on from. A teacher, a checkpoint or a flag that is missing is
an error before anything starts. k-NN and collapse figures are taken on the way.
"""

from dataclasses import asdict, replace

from lowbit.data.recipe import ColorJitter, Colour, RandomBlur, RandomGrayscale
from lowbit.errors import InputError
from lowbit.evaluate.pretraining import Monitored, open_pictures, run_pretraining
from lowbit.export.backbone import save_backbone
from lowbit.models.create import check_arch
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.options import RunOptions
from lowbit.train.batch import BatchPlan, check_queue, check_shuffle, per_node
from lowbit.train.configured import refuse
from lowbit.train.copies import Copies
from lowbit.train.job import Job
from lowbit.train.process import local_processes
from lowbit.train.protocol import Stage
from lowbit.train.run import Result
from lowbit.train.schedule import Schedule
from lowbit.train.session import Session
from s2bnn import load
from s2bnn.commands import FILES
from s2bnn.methods import build, start_from_
from s2bnn.optim import pretrain_rate
from s2bnn.options import PretrainOptions

# MoCo v2's colours, but jitter for 60, not 80 %, and blur for 20, not 50 % of the views; without --aug-plus v1's
PLUS: tuple[Colour, ...] = (ColorJitter(p=0.6), RandomGrayscale(0.2), RandomBlur(0.2))
PLAIN: tuple[Colour, ...] = (RandomGrayscale(0.2), ColorJitter(hue=0.4, p=1.0))
LINES = {"Loss": "loss", "Loss_cl": "loss_cl", "Loss_kd": "loss_kd", "Acc@1": "top1", "Acc@5": "top5"}


def main_moco(options: RunOptions, own: PretrainOptions) -> Result | None:
    """Check, then train, with figures on the way, and write the results. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    lr = check(options, own)
    with Session("s2bnn", options, own.dataset, [own.teacher_path, own.model_path], files=FILES) as session:
        batch = batch_of(options, own, session)
        shown = open_pictures(session, own.dataset, own.image_size, figures=own.probe_every > 0)
        views = replace(shown.views, colour=PLUS if own.aug_plus else PLAIN)
        pictures = shown._replace(views=views)
        objective, facts = build(own, pictures.size, options.seed)
        if own.model_path is not None and session.resumed() is None:
            start_from_(objective, own.model_path, own.student)
        more = {"n_views": objective.n_views, "drop_last": True, "labels": False}
        loader = session.loader(pictures.train, views, batch, **more)
        session.place(objective, sync_batchnorm=own.sync_bn)
        cfg = pretrained_cfg(pictures.plain, pictures.size)
        job = Job(
            session, "main_moco", [Stage(objective, own.epochs, {"main": lr})], loader, batch,
            header=load.header(own.student, own.step, cfg, own.method), shared=own.compared,
            described=asdict(own), log_every=own.print_freq, prefixes=load.PREFIXES, facts={**pictures.facts, **facts},
        )  # fmt: skip
        return run_pretraining(
            job,
            Monitored(encoder="encoder_q", dim=own.moco_dim, pictures=pictures, every=own.probe_every),
            facts={"method": own.method, "step": own.step, "dataset": own.dataset, **pictures.facts, **facts},
            lines=lines_of(own),
            copies=Copies(lambda clock: True, own.keep, unfinished=True),
            finish=lambda folder, result: job.export(
                folder, result,
                lambda path: save_backbone(objective.encoder_q, path / "backbone.safetensors", own.student, cfg),
            ),
        )  # fmt: skip


def lines_of(own: PretrainOptions) -> dict[str, str]:
    """The meters that the authors' log of a method shows."""
    left = {"Loss_cl", "Acc@1", "Acc@5"} if not own.contrasts else set() if own.distils else {"Loss_cl", "Loss_kd"}
    return {name: key for name, key in LINES.items() if name not in left}


def check(options: RunOptions, own: PretrainOptions) -> Schedule:
    """What can be refused before any data is read; returns the learning rate by epoch.

    Raises:
        InputError: an unknown net, flags that do not go together, or a file that is not there.
    """
    teacher = {"--teacher-path": own.teacher_path, "--timm-teacher": own.timm_teacher, "--teacher-t": own.teacher_t}
    if not own.distils:
        refuse({**teacher, "--over queue": own.over == "queue", "--kl": own.kl}, "without a distillation in --method")
    refuse({"--pretrained": options.pretrained}, "in main_moco: see --timm-teacher and --model-path;")
    refuse({"--val-split": options.val_split}, "in main_moco, which keeps no best")
    for arch in (own.student, *((own.arch,) if own.distils else ())):
        check_arch(arch)
    for flag, path in (("--teacher-path", own.teacher_path), ("--model-path", own.model_path)):
        if path is not None and not path.is_file():
            raise InputError(f"{flag} {path}: there is no such file: name a checkpoint")
    return pretrain_rate(own)


def batch_of(options: RunOptions, own: PretrainOptions, session: Session) -> BatchPlan:
    """Pictures per step.

    Raises:
        InputError: it cannot be split, does not fit a queue, or its parts would change the keys.
    """
    world = session.accelerator.num_processes
    batch = per_node(own.batch_size, world, local_processes(), accumulate=options.accumulate)
    if own.contrasts:
        check_shuffle(batch, world)
    if own.contrasts or own.over == "queue":
        check_queue(batch, own.moco_k, "--moco-k")
    return batch
