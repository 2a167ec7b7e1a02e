"""SGD on bit planes that never holds their gradients: each plane's is a multiple of the dense weight's.

The loss reaches the planes through w = s / L * sum_i (p_i - n_i) 2^(N-1-i) (straight through round and clip), so
dL/dp_i = s 2^(N-1-i) / L * dL/dw and dL/dn_i = -dL/dp_i; the group lasso (Yang et al., ICLR 2021, Eq. 4-5) pulls plane
i by strength * numel N / TP * p_i / ||(p_i, n_i)||. A layer therefore trains a dense leaf (`BitLayer.attach_`), DDP
reduces that leaf alone, and this optimizer does the rest: at 8 bits 32 floats a weight stay (planes and momentum) where
separate gradients would make 48. The lasso is therefore here and not in a hook of the loop (`before_step`): it differs
by plane, so that no gradient of the leaf can hold it.

What a step costs is memory traffic and the number of operations. So p and n of a tensor lie in one block (2, N, ...)
and move together, and what has one number a plane or a tensor is computed for the whole net at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from bsq import planes
from bsq.bit_layer import BitLayer, Keys

CEILING = 2.0  # a bit may grow to 2, which is how a width grows at re-quantisation (Sec. 3.3)


class Slot(NamedTuple):
    """One tensor of a layer: what it is, its leaf, and its block of planes, p over n."""

    layer: BitLayer
    keys: Keys
    leaf: Tensor
    block: Tensor

    @property
    def bits(self) -> int:
        """N."""
        return self.block.shape[1]

    @property
    def attached(self) -> bool:
        """Whether the layer still computes with the leaf, and its planes are still views of the block."""
        if self.layer._parameters.get(self.keys.dense) is not self.leaf:
            return False
        own = self.layer.planes(self.keys)[:2]
        return all(x.data_ptr() == half.data_ptr() for x, half in zip(own, self.block, strict=True))


class PlaneSGD(Optimizer):
    """SGD with momentum and weight decay on planes and scales, with the group lasso, then planes clamped to [0, 2].

    Args:
        layers: in bit form, on their device; they get their dense leaves here.
        lr: learning rate.
        momentum: of the planes and scales.
        weight_decay: likewise, on planes and scales, as the authors have it.
        strength: alpha of the paper, the group lasso's weight in the loss.
        total: weights and biases of the net's bit layers (TP), which the lasso is divided by.
    """

    def __init__(
        self, layers: Sequence[BitLayer], lr: float, momentum: float = 0.9, weight_decay: float = 0.0,
        strength: float = 0.0, total: int | None = None,
    ) -> None:  # fmt: skip
        self.slots = [
            Slot(layer, keys, layer.dense(keys), block) for layer in layers for keys, block in layer.attach_().items()
        ]
        self.total = total or sum(slot.leaf.numel() for slot in self.slots)
        leaves = [slot.leaf for slot in self.slots]
        super().__init__(leaves, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "strength": strength})
        for slot in self.slots:
            scale = slot.layer.planes(slot.keys).scale.detach()
            self.state[slot.leaf] = {"planes": torch.zeros_like(slot.block), "scale": torch.zeros_like(scale)}
        like = leaves[0].detach()
        self._widths = [slot.bits for slot in self.slots]
        self._tops = like.new_tensor([planes.top(bits) for bits in self._widths])
        # one number a plane, over all tensors: 2^(N-1-i) / L, and numel N / TP of the group lasso
        self._units = torch.cat([planes.place_values(bits, like) / planes.top(bits) for bits in self._widths])
        self._groups = self._per_plane(like.new_tensor([slot.leaf.numel() * slot.bits for slot in self.slots]))
        self._groups /= self.total
        self._signed = {bits: planes.signed_places(bits, like) for bits in set(self._widths)}
        self._norms = self._joint([planes.squares(slot.block) for slot in self.slots])

    @property
    def strength(self) -> float:
        """The group lasso's weight; a part of the optimizer's state."""
        return float(self.param_groups[0]["strength"])

    @strength.setter
    def strength(self, value: float) -> None:
        self.param_groups[0]["strength"] = value

    def lasso(self) -> Tensor:
        """The regulariser of the planes as they are: sum of numel N ||plane|| over all tensors, divided by TP."""
        return torch.dot(self._norms, self._groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer.

        Raises:
            KeyError, ValueError: the state of other planes.
        """
        super().load_state_dict(state_dict)
        if not isinstance(self.param_groups[0]["strength"], float | int):
            raise ValueError(f"a strength of {self.param_groups[0]['strength']!r}")
        for slot in self.slots:
            state = self.state[slot.leaf]
            if state["planes"].shape != slot.block.shape or state["scale"].shape != torch.Size():
                raise ValueError(f"momentum of other planes than {tuple(slot.block.shape)}")
            state["planes"] = state["planes"].contiguous()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move planes and scales by the gradients of the dense leaves, and refresh the leaves.

        Raises:
            RuntimeError: the net was moved, loaded or changed after this optimizer was made.
        """
        if not all(slot.attached for slot in self.slots):
            raise RuntimeError("the planes moved after their optimizer was made: make it when the net has its place")
        group = self.param_groups[0]
        momentum, decay, lr = group["momentum"], group["weight_decay"], group["lr"]
        gradients = [torch.zeros_like(s.leaf) if s.leaf.grad is None else s.leaf.grad for s in self.slots]
        scales = [slot.layer.planes(slot.keys).scale.detach() for slot in self.slots]
        dots = [torch.dot(g.flatten(), s.leaf.flatten()) for g, s in zip(gradients, self.slots, strict=True)]
        scale = torch.stack(scales)
        reach = self._units * self._per_plane(scale)
        pull = self._groups * group["strength"] / self._norms + decay

        moved = [self.state[slot.leaf]["scale"] for slot in self.slots]
        velocity = torch.stack(moved) * momentum + torch.where(scale == 0, 0, torch.stack(dots) / scale) + decay * scale
        scale = scale - lr * velocity
        torch._foreach_copy_(moved, list(velocity.unbind()))
        torch._foreach_copy_(scales, list(scale.unbind()))

        squares = []
        reaches, pulls = torch.stack((reach, -reach)), torch.stack((pull, pull))
        each = zip(reaches.split(self._widths, 1), pulls.split(self._widths, 1), (scale / self._tops), strict=True)
        for slot, g, (reach, pull, step) in zip(self.slots, gradients, each, strict=True):
            rows = 2 * slot.bits
            x, m = slot.block.view(rows, -1), self.state[slot.leaf]["planes"].view(rows, -1)
            m.addr_(reach.flatten(), g.flatten(), beta=momentum).addcmul_(x, pull.reshape(rows, 1))
            x.sub_(m, alpha=lr).clamp_(0, CEILING)
            torch.mul(planes.block_codes(slot.block, self._signed[slot.bits]), step, out=slot.leaf)
            squares.append(planes.squares(slot.block))
        self._norms = self._joint(squares)

    def _per_plane(self, values: Tensor) -> Tensor:
        """One value a tensor -> one a plane."""
        return torch.cat([value.expand(bits) for value, bits in zip(values, self._widths, strict=True)])

    @staticmethod
    def _joint(squares: list[Tensor]) -> Tensor:
        return planes.joint(torch.cat(squares, 1))
