"""Names of the distillation methods, their weights, and what command lines say of them (no torch).

L = gamma CE + alpha KD + beta (what the method adds); CKTF: beta (its last term) + theta (its others). Weights are
those of the authors' scripts; of those that their program only names (`pkt`, `abound`, `kdsvd`) and of KD with labels
RepDistiller's, the collection of Tian, Krishnan, Isola (ICLR 2020, arXiv 1910.10699) that their program is built on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.errors import InputError


class Method(NamedTuple):
    """A method.

    Attributes:
        title: its short name. beta: the weight.
        two_stages: `--init_epochs` epochs on the method's loss alone come first.
        adds: whether there is a term in the (second) stage; without it that is training with labels.
        negatives: labels say which pictures are negatives; else they are in cross-entropy alone.
    """

    title: str
    beta: float
    two_stages: bool = False
    adds: bool = True
    negatives: int = 0


METHODS = {
    "kd": Method("KD", 0.0, adds=False),
    "hint": Method("FitNet", 100.0),
    "attention": Method("AT", 1000.0),
    "nst": Method("NST", 50.0),
    "similarity": Method("SP", 3000.0),
    "correlation": Method("CC", 0.02),
    "vid": Method("VID", 1.0),
    "rkd": Method("RKD", 1.0),
    "pkt": Method("PKT", 30000.0),
    "kdsvd": Method("KD-SVD", 1.0),
    "crd": Method("CRD", 0.8, negatives=16384),
    "crdst": Method("CKTF", 1.0, negatives=4096),
    "fsp": Method("FSP", 50.0, two_stages=True, adds=False),
    "factor": Method("FT", 200.0, two_stages=True),
    "abound": Method("AB", 1.0, two_stages=True, adds=False),
}
SQAKD, HINTON = (0.0, 1.0), (0.1, 0.9)  # gamma and alpha of `kd`: of a low-bit student, of a float one
THETA = 0.8  # of CKTF
MODES, BLOCKS = ("exact", "relax"), ("Last", "Smallest", "Largest", "First", "Random")


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """The teacher and the method.

    Attributes:
        distill: of METHODS; "": no teacher. teacher_path, teacher_arch: the teacher's file and timm name.
        kd_t: temperature. kd_gamma, kd_alpha, kd_beta, kd_theta: weights.
        features, teacher_features: modules whose outputs are compared, the stem's first; (): timm's stages.
        feat_dim: length of CRD's and CC's embeddings. nce_k, nce_t, nce_m: CRD's negatives, temperature, momentum.
        mode: of MODES: CRD's positive is the picture itself, or another of its class.
        hint_layer: number of FitNet's module. st_method: of BLOCKS, CKTF's choice in a teacher's stage.
        init_epochs: of the first stage.
    """

    distill: str = ""
    teacher_path: Path | None = None
    teacher_arch: str | None = None
    kd_t: float = 4.0
    kd_gamma: float = 1.0
    kd_alpha: float = 0.0
    kd_beta: float = 0.0
    kd_theta: float = 0.0
    features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()
    feat_dim: int = 128
    nce_k: int = 0
    nce_t: float = 0.1
    nce_m: float = 0.5
    mode: str = "exact"
    hint_layer: int = 2
    st_method: str = "Last"
    init_epochs: int = 30

    @property
    def method(self) -> Method:
        """Of `distill`."""
        return METHODS[self.distill]

    @property
    def label_reader(self) -> str:
        """What reads labels, as an error says it; "": nothing."""
        if self.distill and self.method.negatives:
            return f"--distill {self.distill} chooses negatives by labels"
        beside = f" beside --distill {self.distill}" if self.distill else ""
        return f"cross-entropy{beside} reads labels" if self.kd_gamma > 0 else ""

    @property
    def reads_labels(self) -> bool:
        """In the loss, or to choose negatives."""
        return bool(self.label_reader)


def distillation(given: Mapping[str, Any], *, low_bit: bool) -> dict[str, Any]:
    """The fields of the method out of a command line's.

    Raises:
        InputError: a method without a teacher, or no loss at all.
    """
    name = given.get("distill", "")
    name = {"True": "kd", "False": ""}.get(name, name)
    weights = {key: given.get(key) for key in ("kd_gamma", "kd_alpha", "kd_beta", "kd_theta")}
    if not name:
        gamma = 1.0 if weights["kd_gamma"] is None else weights["kd_gamma"]
        if not gamma:
            raise InputError("--kd_gamma (--gamma) 0 without --distill has no loss: give 1")
        return {"distill": "", "kd_gamma": gamma, "kd_alpha": 0.0, "kd_beta": 0.0, "kd_theta": 0.0}
    if given.get("teacher_path") is None:
        raise InputError(f"--distill {name} learns from a teacher: name its checkpoint, --teacher_path FILE")
    method = METHODS[name]
    gamma, alpha = (SQAKD if low_bit else HINTON) if name == "kd" else (1.0, 0.0)
    default = {"kd_gamma": gamma, "kd_alpha": alpha, "kd_beta": method.beta, "kd_theta": THETA * (name == "crdst")}
    found = {key: default[key] if value is None else value for key, value in weights.items()}
    if not (found["kd_gamma"] or found["kd_alpha"] or (method.adds and (found["kd_beta"] or found["kd_theta"]))):
        raise InputError(f"--distill {name} with weights of 0 has no loss: give --kd_gamma (--gamma) or another one")
    return {"distill": name, **found, "nce_k": given.get("nce_k") or method.negatives}
