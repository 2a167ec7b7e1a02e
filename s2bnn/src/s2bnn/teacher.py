"""The frozen teacher: any timm net, out of any file of weights, or with timm's own.

Its embedding is what its file has in the classifier's place, as MoCo's and SimSiam's do; of any other file (SwAV, DINO,
torchvision, timm) the pooled features. The authors' program reads MoCo v2's published file alone, and goes on with a
random teacher where it is missing.
"""

from typing import Any

from torch import nn

from lowbit.errors import InputError
from lowbit.models.create import create_model, create_pretrained
from lowbit.models.heads import end_like_
from lowbit.models.surgery import run_blank
from lowbit.models.weight_file import BINARIZATION, read_weights
from lowbit.models.weights import backbone_of, branch_of, load_
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
    if own.teacher_path is None:
        net, what = create_pretrained(own.arch, 0, flag="--timm-teacher"), "pooled features"
    else:
        net, what = _of_file(own)
    dims: list[int] = []
    hook: Any = net.register_forward_hook(lambda module, args, out: dims.append(out.shape[1]))
    run_blank(net, size, [hook], setting="--image-size")
    return net.eval().requires_grad_(False), dims[0], what


def _of_file(own: PretrainOptions) -> tuple[nn.Module, str]:
    try:
        weights = read_weights(str(own.teacher_path))
        if weights.ours and weights.said.get(BINARIZATION):
            raise InputError(f"{own.teacher_path}: it is a binary net, and a teacher is real-valued: name another file")
        arch = weights.choose_arch(own.arch, flag="-a")
        branch = branch_of(weights, create_model(arch, num_classes=0))
        try:
            made: Any = end_like_(create_model(arch, num_classes=1), branch.state)
            head = made.get_classifier()
        except InputError:  # a net without a classifier, or no projector in its place
            head = None
        if not isinstance(head, nn.Sequential) and (branch.plain or not isinstance(head, nn.Linear)):
            return backbone_of(weights, arch).model, "pooled features"
        load_(made, weights, branch, projector=True)
    except InputError as error:
        raise InputError(f"--teacher-path, of a {own.arch}: {error}") from error
    return made, "embeddings"
