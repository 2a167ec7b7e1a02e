"""The flags of the distillation methods (click only, no tensor)."""

import click

from lowbit.cli.options import Decorator
from lowbit.cli.parsing import COUNT, MANY, Real, Several, Switch, UserPath
from sqakd.kd.registry import BLOCKS, METHODS, MODES

POSITIVE, PART = Real(0, min_open=True), Real(0, 1, max_open=True)


def distill_flags(gamma: str, alpha: str) -> list[Decorator]:
    """The teacher, the method, and the weights of the losses.

    Args:
        gamma: spelling of the weight of cross-entropy.
        alpha: of the weight of the divergence.
    """
    names = (*METHODS, "True", "False")
    return [
        click.option("--distill", cls=Switch, type=click.Choice(names), alone="kd", default="False", metavar="NAME",
                     help=f"Learn from a teacher; kd: from its outputs (SQAKD). NAME: {', '.join(METHODS)}."),
        click.option("--teacher_path", type=UserPath(), help="The teacher's file: ours, the authors', or any weights."),
        click.option("--teacher_arch", show_default="--arch", help="The teacher's net."),
        click.option("--kd_T", "kd_t", type=POSITIVE, default=4.0, show_default=True, help="Temperature."),
        click.option(gamma, "kd_gamma", type=Real(0), show_default="1; with kd 0, of a float net 0.1",
                     help="Weight of cross-entropy; 0: no labels are read."),
        click.option(alpha, "kd_alpha", type=Real(0), show_default="0; with kd 1, of a float net 0.9",
                     help="Weight of the divergence."),
        click.option("--kd_beta", type=Real(0), show_default="the method's", help="Weight of what the method adds."),
        click.option("--kd_theta", type=Real(0), show_default="0.8", help="crdst: weight of its other terms."),
        click.option("--features", cls=Several, metavar="MODULE...", show_default="its stages, as timm names them",
                     help="The student's modules whose outputs are compared, the stem's first."),
        click.option("--teacher_features", cls=Several, metavar="MODULE...", help="The teacher's, likewise."),
        click.option("--feat_dim", type=COUNT, default=128, show_default=True, help="Length of embeddings."),
        click.option("--mode", type=click.Choice(MODES), default="exact", show_default=True,
                     help="crd: a picture's positive is itself, or any of its class."),
        click.option("--nce_k", type=COUNT, show_default="16384; crdst 4096", help="crd: negatives of a picture."),
        click.option("--nce_t", type=POSITIVE, default=0.1, show_default=True, help="crd: temperature."),
        click.option("--nce_m", type=PART, default=0.5, show_default=True, help="crd: momentum of its memory."),
        click.option("--head", type=click.Choice(["linear"]), default="linear", expose_value=False, hidden=True),
        click.option("--hint_layer", type=MANY, default=2, show_default=True, help="hint: which of the modules."),
        click.option("--st_method", type=click.Choice(BLOCKS), default="Last", show_default=True,
                     help="crdst: which block of a stage of the teacher."),
        click.option("--init_epochs", type=COUNT, default=30, show_default=True,
                     help="Epochs of the first stage of fsp, factor and abound."),
    ]  # fmt: skip
