"""The tensors of BSQ's layers, in two forms.

Two forms (the keys are the authors'):
- bit: `pweight`, `nweight` (w.shape + (N,)), `scale`; with a bias `pbias`, `nbias`, `biasscale`. Width: the shape.
- finetune: `weight` (latent, clipped to [-1, 1] in use), `scale`; with a bias `bias`, `biasscale`. Width: kept apart.

Deviations from the authors' program: the bias stays in the forward of the finetune form (theirs drops it, and ships a
stale one); convolutions may have a bias; a dead tensor (all planes empty) counts 0 bits in both forms and keeps one
empty trainable plane in bit form.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from bsq import planes
from bsq.planes import Planes
from lowbit.errors import InputError
from lowbit.quant.layers import Codes, Grid


class Keys(NamedTuple):
    """Names of one tensor's parameters: positive planes, negative planes, scale, latent, dense leaf."""

    p: str
    n: str
    scale: str
    latent: str
    dense: str


WEIGHT = Keys("pweight", "nweight", "scale", "weight", "dense_weight")
BIAS = Keys("pbias", "nbias", "biasscale", "bias", "dense_bias")


class BitLayer(nn.Module):
    """What BitConv2d and BitLinear share: the tensors. A base class, since the planes' keys sit on the layer itself.

    Args:
        weight, bias: float tensors to convert; their planes take over dtype and device.
        bits, bias_bits: magnitude bits; 0 builds one empty plane.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int, bias_bits: int) -> None:
        super().__init__()
        self.tensors = (WEIGHT,) if bias is None else (WEIGHT, BIAS)
        self._latent_bits: dict[str, int] = {}  # widths in finetune form, by latent key
        for keys, value, width in zip(self.tensors, (weight, bias), (bits, bias_bits), strict=False):
            assert value is not None
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"a {keys.latent} holds NaN or infinity and cannot be quantized: check the checkpoint")
            self._set_planes(keys, planes.from_float(value.detach(), width))

    @property
    def form(self) -> str:
        """Either "bit" or "finetune"."""
        return "bit" if WEIGHT.p in self._parameters else "finetune"

    def planes(self, keys: Keys = WEIGHT) -> Planes:
        """The parameters of one tensor in bit form."""
        return Planes(getattr(self, keys.p), getattr(self, keys.n), getattr(self, keys.scale))

    def bits(self, keys: Keys = WEIGHT) -> int:
        """Magnitude bits of one tensor; 0 if it is dead, or if there is no such tensor (no bias)."""
        if keys not in self.tensors:
            return 0
        if self.form == "finetune":
            return self._latent_bits[keys.latent]
        p, n, _ = self.planes(keys)
        return 0 if planes.is_dead(p, n) else p.shape[-1]

    def numel(self, keys: Keys = WEIGHT) -> int:
        """Elements of one tensor."""
        if keys not in self.tensors:
            return 0
        return self._get(keys.p)[..., 0].numel() if self.form == "bit" else self._get(keys.latent).numel()

    @torch.no_grad()
    def codes(self, keys: Keys = WEIGHT) -> Tensor:
        """Integer codes in [-(2^N - 1), 2^N - 1], as floats."""
        if self.form == "bit":
            return planes.codes(self._get(keys.p), self._get(keys.n))
        return planes.latent_codes(self._get(keys.latent), self._latent_bits[keys.latent])

    def latent(self, keys: Keys) -> Tensor:
        """The latent of one tensor, in finetune form."""
        return self._get(keys.latent)

    def effective(self, keys: Keys = WEIGHT) -> Tensor:
        """The weight (or bias) that the layer computes with, codes * (scale / (2^N - 1)), differentiable."""
        if keys.dense in self._parameters:
            return self.dense(keys)
        if self.form == "bit":
            return planes.reconstruct(*self.planes(keys))
        latent, scale = self._get(keys.latent), self._get(keys.scale)
        return planes.reconstruct_latent(latent, scale, self._latent_bits[keys.latent])

    def effective_bias(self) -> Tensor | None:
        """The bias that the layer computes with."""
        return self.effective(BIAS) if BIAS in self.tensors else None

    # the layer protocol

    @torch.no_grad()
    def _codes(self, keys: Keys) -> Codes:
        bits = self.bits(keys)
        code, scale = self.codes(keys).to(torch.int32), self._step(keys).detach()
        return Codes(code, Grid(scale, torch.zeros_like(scale), bits + 1 if bits else 0, signed=True))

    def weight_codes(self) -> Codes:
        """The weight as N + 1 bit codes (0 if dead)."""
        return self._codes(WEIGHT)

    def bias_codes(self) -> Codes | None:
        """The bias likewise."""
        return self._codes(BIAS) if BIAS in self.tensors else None

    def input_grid(self) -> Grid | None:
        """None: the input is taken as it comes."""
        return None

    # training (bsq.sgd)

    def dense(self, keys: Keys) -> Tensor:
        """The leaf that training differentiates, only between attach_ and detach_.

        It equals the planes' weight, but for sums so near a tie that their order decides.
        """
        return self._get(keys.dense)

    @torch.no_grad()
    def attach_(self) -> dict[Keys, Tensor]:
        """Compute with dense leaves from here on; planes and scale are then moved by `bsq.sgd.PlaneSGD` alone.

        The leaves are in no state dict.

        Returns:
            A block (2, N, ...) for each tensor, which its planes are now views of (their shape stays).
        """
        self.detach_()
        blocks = {}
        for keys in self.tensors:
            p, n, scale = self.planes(keys)
            block = blocks[keys] = planes.to_block(p, n)
            for parameter, half in zip((p, n), planes.from_block(block), strict=True):
                parameter.data = half
            for parameter in (p, n, scale):
                parameter.requires_grad_(False)
            code = planes.block_codes(block, planes.signed_places(block.shape[1], block))
            self.register_parameter(keys.dense, nn.Parameter(code * self._step(keys)))
        return blocks

    def detach_(self) -> None:
        """Compute with the planes again; without leaves, nothing happens."""
        for keys in self.tensors:
            if keys.dense in self._parameters:
                self._remove(keys.dense)
                for name in (keys.p, keys.n, keys.scale):
                    self._get(name).requires_grad_(True)

    # changes of form and width

    @torch.no_grad()
    def to_finetune_(self) -> Self:
        """Bit form to finetune form: latent = sum (p - n) 2^(N-1-i) / (2^N - 1), widths fixed from here on."""
        if self.form == "finetune":
            return self
        self.detach_()
        self._latent_bits = {keys.latent: self.bits(keys) for keys in self.tensors}
        for keys in self.tensors:
            p, n, _ = self.planes(keys)
            self._remove(keys.p, keys.n)
            self._set(keys.latent, planes.weighted_sum(p, n) / planes.top(p.shape[-1]))
        self._order()
        return self

    @torch.no_grad()
    def to_bits_(self) -> Self:
        """Finetune form to bit form; exact, the scale stays."""
        if self.form == "bit":
            return self
        codes = {keys: self.codes(keys) for keys in self.tensors}
        for keys, code in codes.items():
            p, n = planes.to_planes(code, max(self._latent_bits[keys.latent], 1), code)
            self._remove(keys.latent)
            self._set_planes(keys, Planes(p, n, self._get(keys.scale)))
        self._latent_bits = {}
        self._order()
        return self

    @torch.no_grad()
    def change_planes_(self, change: Callable[[Planes], Planes], *tensors: Keys) -> Self:
        """Apply a function of `bsq.planes` (requantize, prune) to weight and bias, or to the tensors that are named.

        Parameters become new ones.

        Raises:
            ValueError: the layer is not in bit form.
        """
        if self.form != "bit":
            raise ValueError("only planes can be re-quantised or pruned; call to_bits_() first")
        self.detach_()
        for keys in tensors or self.tensors:
            self._set_planes(keys, change(self.planes(keys)))
        return self

    def set_latent_bits_(self, bits: int, bias_bits: int) -> Self:
        """The widths of the finetune form, which its tensors do not show (before loading a checkpoint of it)."""
        self.to_finetune_()
        for keys, width in zip(self.tensors, (bits, bias_bits), strict=False):
            self._latent_bits[keys.latent] = width
        return self

    def group_lasso(self) -> Tensor:
        """Sum of numel N sum_i ||plane i|| over weight and bias (`bsq.planes.group_lasso`), a scalar."""
        parts = [planes.group_lasso(*self.planes(keys)[:2]) for keys in self.tensors]
        return torch.stack(parts).sum()

    # parameters by name

    def _get(self, name: str) -> Tensor:
        return getattr(self, name)

    def _step(self, keys: Keys) -> Tensor:
        bits = self._get(keys.p).shape[-1] if self.form == "bit" else self._latent_bits[keys.latent]
        return planes.step(self._get(keys.scale), bits)

    def _remove(self, *names: str) -> None:
        for name in names:
            self._parameters.pop(name, None)

    def _set(self, name: str, value: Tensor) -> None:
        old = self._parameters.get(name)
        trained = old.requires_grad if old is not None else True
        self.register_parameter(name, nn.Parameter(value.detach(), requires_grad=trained))

    def _set_planes(self, keys: Keys, new: Planes) -> None:
        for name, value in zip((keys.p, keys.n, keys.scale), new, strict=True):
            self._set(name, value)

    def _order(self) -> None:
        """The authors' order of parameters: planes with their scale, latents before scales."""
        names = (WEIGHT.latent, BIAS.latent, *WEIGHT[:3], *BIAS[:3])
        self._parameters = {name: self._parameters[name] for name in names if name in self._parameters}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the form and the widths of what is loaded, then load as any module does."""
        self.detach_()
        if prefix + WEIGHT.p in state_dict:
            self.to_bits_()
        elif prefix + WEIGHT.scale in state_dict and prefix + WEIGHT.latent in state_dict:
            self.to_finetune_()
        for name in [name for keys in self.tensors for name in (keys.p, keys.n)]:
            new, old = state_dict.get(prefix + name), self._parameters.get(name)
            if not isinstance(new, Tensor) or old is None or new.shape[:-1] != old.shape[:-1]:
                continue  # missing, or of another layer: load_state_dict says so
            if new.shape != old.shape and 0 < new.shape[-1] <= planes.MAX_BITS:
                self._set(name, old.new_zeros(new.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Everything but the dense leaves, which follow from the planes."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for keys in self.tensors:
            destination.pop(prefix + keys.dense, None)
