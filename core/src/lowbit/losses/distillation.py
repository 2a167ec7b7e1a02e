"""Losses of a student against a teacher's outputs.

SEED: Fang et al., "SEED: Self-supervised Distillation For Visual Representation", ICLR 2021 (arXiv
2101.04731), Eq. 3-5.
"""

import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.contrastive import queue_logits
from lowbit.losses.cosine import Pair


def similarity_distillation(
    student: Tensor, teacher: Tensor, queue: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """SEED: cross-entropy of the student's similarities to the teacher's, over the teacher's output and a queue.

    p = softmax([t.t, t.queue] / T_t), loss = -mean over the batch of sum p log softmax([s.t, s.queue] / T_s).

    Args:
        student: s, normalised, (B, D).
        teacher: t of the same pictures, normalised, (B, D); detached here.
        queue: earlier t as columns, (D, K); detached here, enqueue after the backward pass.
        student_temperature: T_s > 0.
        teacher_temperature: T_t > 0.

    Returns:
        Scalar.
    """
    teacher = teacher.detach()
    probabilities = queue_logits(teacher, teacher, queue, teacher_temperature).softmax(dim=1)
    return F.cross_entropy(queue_logits(student, teacher, queue, student_temperature), probabilities)


def crossed_mse(students: Pair, targets: Pair) -> Tensor:
    """Mean squared error of each view's student and the other view's stopped target, halved; of any shape."""
    (p1, p2), (z1, z2) = students, targets
    return (F.mse_loss(p1, z2.detach()) + F.mse_loss(p2, z1.detach())) / 2
