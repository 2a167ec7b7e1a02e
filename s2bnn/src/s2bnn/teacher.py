"""The frozen teacher: any timm net, out of any file of weights, or with timm's own.

Its embedding is what its file has in the classifier's place, as MoCo's and SimSiam's do; of any other file (SwAV, DINO,
torchvision, timm) the pooled features. The authors' program reads MoCo v2's published file alone, and goes on with a
random teacher where it is missing.
"""

from typing import Any

from torch import nn

from lowbit.errors import InputError
from lowbit.models.create import create_model, create_pretrained
from lowbit.models.heads import linear_classifier
from lowbit.models.surgery import replace_, run_blank
from lowbit.models.weight_file import BINARIZATION, read_weights
from lowbit.models.weights import backbone_of, branch_of, load_
from s2bnn.load import head_like
from s2bnn.options import PretrainOptions


def open_teacher(own: PretrainOptions, size: tuple[int, int, int]) -> tuple[nn.Module, int, str]:
    """The net, the entries of its output, and what that output is.

    Args:
        own: `arch`, and `teacher_path` or `timm_teacher`.
        size: (C, H, W) of the pictures.

    Raises:
        InputError: none is named, it cannot be read, is another net or a binary one, or takes no such pictures.
    """
    if own.timm_teacher == (own.teacher_path is not None):
        raise InputError(f"--method {own.method} learns from one teacher: give --teacher-path FILE, or --timm-teacher")
    net, what = _of_timm(own.arch) if own.teacher_path is None else _of_file(own)
    dims: list[int] = []
    hook: Any = net.register_forward_hook(lambda module, args, out: dims.append(out.shape[1]))
    run_blank(net, size, [hook], setting="--image-size")
    return net.eval().requires_grad_(False), dims[0], what


def _of_timm(arch: str) -> tuple[nn.Module, str]:
    try:
        return create_pretrained(arch, 0), "pooled features"
    except InputError as error:
        raise InputError(str(error).replace("--pretrained", "--timm-teacher")) from error


def _of_file(own: PretrainOptions) -> tuple[nn.Module, str]:
    try:
        weights = read_weights(str(own.teacher_path))
        if weights.ours and weights.said.get(BINARIZATION):
            raise InputError(f"{own.teacher_path}: it is a binary net, and a teacher is real-valued: name another file")
        arch = weights.choose_arch(own.arch, flag="-a")
        net = create_model(arch, num_classes=1)
        branch = branch_of(weights, net)
        try:
            name, _ = linear_classifier(net)
            start = f"{name}."
            state = {key.removeprefix(start): value for key, value in branch.state.items() if key.startswith(start)}
            head = head_like(state)
        except InputError:  # a net without a classifier, or no projector in its place
            head = None
        if head is None or (isinstance(head, nn.Linear) and branch.plain):
            return backbone_of(weights, arch).model, "pooled features"
        load_(replace_(net, {name: head}), weights, branch._replace(prefix=""))  # with its projector, as a plain net
    except InputError as error:
        raise InputError(f"--teacher-path, of a {own.arch}: {error}") from error
    return net, "embeddings"
