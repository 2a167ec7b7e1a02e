"""SGD on bit planes that never holds their gradients: each plane's is a multiple of the dense weight's.

The loss reaches the planes through w = s / L * sum_i (p_i - n_i) 2^(N-1-i) (straight through round and clip), so
dL/dp_i = s 2^(N-1-i) / L * dL/dw and dL/dn_i = -dL/dp_i; the group lasso (Yang et al., ICLR 2021, Eq. 4-5) pulls plane
i by strength * numel N / TP * p_i / ||(p_i, n_i)||. A layer therefore trains a dense leaf (`BitLayer.attach_`), DDP
reduces that leaf alone, and this optimizer does the rest plane by plane: at 8 bits 32 floats a weight stay (planes and
momentum) where separate gradients would make 48.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bsq import planes
from bsq.forms import BitLayer, Keys, plane_by_plane

CEILING = 2.0  # a bit may grow to 2, which is how a width grows at re-quantisation (Sec. 3.3)


class PlaneSGD(Optimizer):
    """SGD with momentum and weight decay on planes and scales, with the group lasso, then planes clamped to [0, 2].

    Args:
        layers: in bit form; they get their dense leaves here.
        lr: learning rate.
        momentum: of the planes and scales.
        weight_decay: likewise, on planes and scales, as the authors have it.
        strength: alpha of the paper, the group lasso's weight in the loss.
        total: weights and biases of the net's bit layers (TP), which the lasso is divided by.
    """

    def __init__(
        self,
        layers: Sequence[BitLayer],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        strength: float = 0.0,
        total: int | None = None,
    ) -> None:
        for layer in layers:
            layer.attach_()
        self.slots: list[tuple[BitLayer, Keys]] = [(layer, keys) for layer in layers for keys in layer.tensors]
        self.total = total or sum(layer.numel(keys) for layer, keys in self.slots)
        leaves = [layer.dense(keys) for layer, keys in self.slots]
        super().__init__(leaves, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "strength": strength})
        for (layer, keys), leaf in zip(self.slots, leaves, strict=True):
            p, n, scale = (tensor.detach() for tensor in layer.planes(keys))
            self.state[leaf] = {"p": torch.zeros_like(p), "n": torch.zeros_like(n), "scale": torch.zeros_like(scale)}
        self._norms = self._all_norms()

    @property
    def strength(self) -> float:
        """The group lasso's weight; a part of the optimizer's state."""
        return float(self.param_groups[0]["strength"])

    @strength.setter
    def strength(self, value: float) -> None:
        self.param_groups[0]["strength"] = value

    @torch.no_grad()
    def _all_norms(self) -> list[Tensor]:
        return [planes.group_norms(*layer.planes(keys)[:2]) for layer, keys in self.slots]

    def lasso(self) -> Tensor:
        """The regulariser of the planes as they are: sum of numel N ||plane|| over all tensors, divided by TP."""
        sums = [
            norm.sum() * (len(norm) * layer.numel(keys))
            for norm, (layer, keys) in zip(self._norms, self.slots, strict=True)
        ]
        return torch.stack(sums).sum() / self.total

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer; the momentum comes to lie plane by plane, as the planes do.

        Raises:
            KeyError, ValueError: the state of other planes.
        """
        super().load_state_dict(state_dict)
        if not isinstance(self.param_groups[0]["strength"], float | int):
            raise ValueError(f"a strength of {self.param_groups[0]['strength']!r}")
        for layer, keys in self.slots:
            state, shapes = self.state[layer.dense(keys)], [tuple(t.shape) for t in layer.planes(keys)]
            if [tuple(state[name].shape) for name in ("p", "n", "scale")] != shapes:
                raise ValueError(f"momentum of other planes than {shapes[0]}")
            state.update({name: plane_by_plane(state[name]) for name in ("p", "n")})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move planes and scales by the gradients of the dense leaves, and refresh the leaves."""
        for (layer, keys), norms in zip(self.slots, self._norms, strict=True):
            self._step(layer, keys, norms, self.param_groups[0])
            layer.refresh_(keys)
        self._norms = self._all_norms()

    def _step(self, layer: BitLayer, keys: Keys, norms: Tensor, group: dict[str, Any]) -> None:
        leaf = layer.dense(keys)
        p, n, scale = (tensor.detach() for tensor in layer.planes(keys))
        state, bits = self.state[leaf], p.shape[-1]
        g = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        reach = planes.place_values(bits, p) * planes.step(scale, bits)
        pull = norms.reciprocal() * (group["strength"] * leaf.numel() * bits / self.total)
        pull += group["weight_decay"]
        d_scale = torch.where(scale == 0, 0, (g * leaf).sum() / scale)
        for sign, plane, moved in ((1, p, state["p"]), (-1, n, state["n"])):
            _move(plane, moved, g, sign * reach, pull, group)
        state["scale"].mul_(group["momentum"]).add_(d_scale).add_(scale, alpha=group["weight_decay"])
        scale.sub_(state["scale"], alpha=group["lr"])


def _move(plane: Tensor, moved: Tensor, g: Tensor, reach: Tensor, pull: Tensor, group: dict[str, Any]) -> None:
    """One set of planes (..., N): momentum, step, clamp; the planes' axis first, where their memory has it."""
    x, m = (tensor.movedim(-1, 0).view(len(reach), -1) for tensor in (plane, moved))
    m.addr_(reach, g.flatten(), beta=group["momentum"]).addcmul_(x, pull.unsqueeze(1))
    x.sub_(m, alpha=group["lr"]).clamp_(0, CEILING)
