"""What the authors' names of methods and nets stand for (no torch)."""

from typing import Literal, NamedTuple

Kind = Literal["plain", "universal", "switchable"]
TIMM = {"mobilenetv2": "mobilenetv2_100"}  # the authors' name of a net -> timm's
TWO_VIEWS = ("CosineSimilarity", "CosineSimilarityv2", "InfoNCEv2", "InfoNCEv2_distill", "MSELoss")


class Method(NamedTuple):
    """What is known of a method without its config."""

    criteria: tuple[str, ...]  # base losses; the first is the one that belongs to it
    head: str = ""  # the submodule that makes the predictions of the base loss; "": the outputs are
    own_head: str = ""  # the key of SSL.SETTING by which narrower passes have a head of their own; "": they never have
    copies: bool = False  # it has a momentum copy
    queue: bool = False  # of keys
    teacher: bool = False  # it is a method of `distill`


METHODS = {
    "SimCLR": Method(("InfoNCEv2", *TWO_VIEWS), own_head="PREDICTOR"),
    "SimCLR_Momentum": Method(("InfoNCEv2_distill", *TWO_VIEWS), own_head="PREDICTOR", copies=True),
    "BYOL": Method(TWO_VIEWS, "predictor", "NEW_DISTILL_HEAD", copies=True),
    "SimSiam": Method(TWO_VIEWS, "predictor"),
    "SimSiam_Momentum": Method(TWO_VIEWS, "predictor", "NEW_DISTILL_HEAD", copies=True),
    "MoCo": Method(("CrossEntropy",), copies=True, queue=True),
    "MoCo_v3": Method(("InfoNCE",), "predictor", "NEW_DISTILL_HEAD", copies=True),
    "SEED": Method(("soft_distill",), queue=True, teacher=True),
    "SEED_MSE": Method(TWO_VIEWS, "predictor", teacher=True),
    "SEED_SimCLR": Method(("InfoNCEv2_distill", *TWO_VIEWS), teacher=True),
}
DISTILLED = tuple(name for name, known in METHODS.items() if known.teacher)


class Net(NamedTuple):
    """What `MODEL.ARCH` names: timm's net, and whether its batch norm is shared by all widths or private to each."""

    name: str
    kind: Kind

    @property
    def arch(self) -> str:
        """A name that `net_of` reads."""
        return {"universal": "us_", "switchable": "s_", "plain": ""}[self.kind] + self.name


def net_of(arch: str) -> Net:
    """Of the authors' name (`us_cifar_resnet18`: universally slimmable, `s_...`: switchable, else plain) or timm's."""
    prefix, _, rest = arch.partition("_")
    kind: Kind = "universal" if prefix == "us" else "switchable" if prefix == "s" else "plain"
    name = arch if kind == "plain" else rest
    return Net(TIMM.get(name, name), kind)
