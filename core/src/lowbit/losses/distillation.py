"""Losses of a student against a teacher's outputs.

SEED: Fang et al., "SEED: Self-supervised Distillation For Visual Representation", ICLR 2021 (arXiv
2101.04731), Eq. 3-5. Temperatures: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv
1503.02531), Sec. 2.
"""

import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.contrastive import queue_logits
from lowbit.losses.cosine import Pair


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy -sum p log q of two distributions, and its least value, the entropy of the teacher's p.

    Args:
        student: logits of q, (B, C).
        teacher: logits of p, (B, C); detached here.

    Returns:
        Two means over the batch: the cross-entropy, the entropy (without gradient). The difference is KL(p, q).
    """
    teacher = teacher.detach()
    p = teacher.softmax(dim=1)
    return F.cross_entropy(student, p), -(p * teacher.log_softmax(dim=1)).sum(dim=1).mean()


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t / T), softmax(s / T)), mean over the batch; T^2 keeps the gradient's size.

    Args:
        student: logits s, (B, C).
        teacher: logits t, (B, C); detached here.
        temperature: T > 0.
    """
    q = (student / temperature).log_softmax(dim=1)
    p = (teacher.detach() / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


def similarity_distillation(
    student: Tensor, teacher: Tensor, queue: Tensor, student_temperature: float, teacher_temperature: float
) -> tuple[Tensor, Tensor]:
    """SEED: cross-entropy of the student's similarities to the teacher's, over the teacher's output and a queue.

    p = softmax([t.t, t.queue] / T_t), loss = -mean over the batch of sum p log softmax([s.t, s.queue] / T_s).

    Args:
        student: s, normalised, (B, D).
        teacher: t of the same pictures, normalised, (B, D); detached here.
        queue: earlier t as columns, (D, K); detached here, enqueue after the backward pass.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.

    Returns:
        As `soft_cross_entropy`.
    """
    teacher = teacher.detach()
    target = queue_logits(teacher, teacher, queue, teacher_temperature)
    return soft_cross_entropy(queue_logits(student, teacher, queue, student_temperature), target)


def crossed_mse(students: Pair, targets: Pair) -> Tensor:
    """Mean squared error of each view's student and the other view's stopped target, halved; of any shape."""
    (p1, p2), (z1, z2) = students, targets
    return (F.mse_loss(p1, z2.detach()) + F.mse_loss(p2, z1.detach())) / 2
