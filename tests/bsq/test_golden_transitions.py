"""Re-quantisation, pruning and changes of form of one layer against the original's numbers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bsq import planes
from bsq.bit_layer import BIAS, WEIGHT
from bsq.layers import BitConv2d, BitLinear
from bsq.planes import Planes


def stage_planes(arrays: dict[str, Tensor], prefix: str, bias: bool) -> Planes:
    names = ("pb", "nb", "biasscale") if bias else ("p", "n", "scale")
    p, n, scale = (arrays[prefix + name].float() for name in names)
    return Planes(p, n, scale)


def check_stage(ours: Planes, arrays: dict[str, Tensor], prefix: str, bias: bool, near: Callable) -> None:
    theirs = stage_planes(arrays, prefix, bias)
    assert ours.bits == int(arrays[prefix + "N"][int(bias)]), prefix
    assert torch.equal(ours.p, theirs.p) and torch.equal(ours.n, theirs.n), prefix
    near(ours.scale, theirs.scale, prefix + "scale")
    near(planes.reconstruct(*ours), arrays[prefix + ("bq" if bias else "wq")], prefix + "wq")


def test_requantize_and_prune(recorded: Any, near: Callable) -> None:
    arrays = recorded["transitions"]
    for prefix in recorded.cases("transitions", r"tr\.(?:N\d+\.|lin\.)\w+\."):
        for bias in (False, True) if f"{prefix}0.pb" in arrays else (False,):
            threshold = float(arrays.get(f"{prefix}thre", torch.zeros(())))
            start = stage_planes(arrays, f"{prefix}0.", bias)
            near(planes.reconstruct(*start), arrays[f"{prefix}0." + ("bq" if bias else "wq")], prefix)
            quantized = planes.requantize(start, max_bits=8)
            check_stage(quantized, arrays, f"{prefix}quant.", bias, near)
            pruned = planes.prune(quantized, threshold)
            check_stage(pruned, arrays, f"{prefix}prune.", bias, near)
            assert pruned.bits == int(arrays[f"{prefix}prune.dict"][int(bias)])
            if not threshold:
                near(planes.reconstruct(*pruned), planes.reconstruct(*quantized), prefix)
            again = planes.prune(planes.requantize(pruned))
            assert torch.equal(again.p, pruned.p) and torch.equal(again.scale, pruned.scale)


def check_tensors(layer: Any, arrays: dict[str, Tensor], prefix: str, near: Callable) -> None:
    for name, value in layer.named_parameters():
        theirs = arrays[prefix + name].float()
        if name in ("pweight", "nweight", "pbias", "nbias"):
            assert torch.equal(value, theirs), prefix + name
        else:
            near(value, theirs.reshape(value.shape), prefix + name)


def plain_layer(recorded: Any, chain: str) -> nn.Module:
    arrays = recorded["roundtrip_act"]
    if ".lin" in chain:
        w, b = arrays[f"{chain}w"], arrays[f"{chain}b"]
        layer: Any = nn.Linear(w.shape[1], w.shape[0])
        layer.weight.data, layer.bias.data = w.clone(), b.clone()
        return layer
    stride, padding, groups = arrays["rt.conv.stride_padding_groups"].tolist()
    w = arrays["rt.conv.w"]
    layer = nn.Conv2d(w.shape[1] * groups, w.shape[0], w.shape[2:], stride, padding, groups=groups, bias=False)
    layer.weight.data = w.clone()
    return layer


def from_planes(recorded: Any, chain: str) -> Any:
    """The layer of stage 0 from its recorded planes (and, for stages after it, one whose tensors were overwritten)."""
    arrays = recorded["roundtrip_act"]
    bits, bias_bits = arrays[f"{chain}0.N"].tolist()
    plain = plain_layer(recorded, chain)
    layer: Any = BitLinear(plain, bits, bias_bits) if isinstance(plain, nn.Linear) else BitConv2d(plain, bits)
    for name, parameter in layer.named_parameters():
        parameter.data = arrays[f"{chain}0.{name}"].float()
    return layer


def test_changes_of_form(recorded: Any, near: Callable) -> None:
    arrays = recorded["roundtrip_act"]
    kernels = 8e-7
    for chain in recorded.cases("roundtrip_act", r"rt\.(?:conv\d+(?:noise)?|lin\d+|lossy|dead)\.(?=.*N$)"):
        chain = chain.split("0.")[0] if chain.endswith("0.") else chain
        linear = ".lin" in chain
        x = arrays["rt.lin.x" if linear else "rt.conv.x"]
        layer = from_planes(recorded, chain)
        if f"{chain}float.y" in arrays:
            plain = plain_layer(recorded, chain)
            fresh: Any = BitLinear(plain, layer.bits()) if linear else BitConv2d(plain, layer.bits())  # type: ignore[arg-type]
            check_tensors(fresh, arrays, f"{chain}0.", near)
        check_tensors(layer, arrays, f"{chain}0.", near)
        near(layer(x), arrays[f"{chain}0.y"], chain + "0", kernels)

        layer.to_finetune_()
        check_tensors(layer, arrays, f"{chain}1_finetune.", near)
        assert layer.bits() == int(arrays[f"{chain}1_finetune.N"][0])
        right = f"{chain}0.y" if linear else f"{chain}1_finetune.y"  # the original forgets the bias here
        near(layer(x), arrays[right], chain + "1", kernels)
        if f"{chain}noise" in arrays:
            layer.weight.data += arrays[f"{chain}noise"]
            near(layer.weight, arrays[f"{chain}1b_noise.weight"])
            near(layer(x), arrays[f"{chain}1b_noise.y"], chain + "1b", kernels)

        before = layer(x)
        layer.to_bits_()
        check_tensors(layer, arrays, f"{chain}2_bit.", near)
        near(layer(x), arrays[f"{chain}2_bit.y"], chain + "2", kernels)
        assert torch.equal(layer(x), before), "finetune form to bit form must be exact"

        plain = layer.to_plain()
        check_tensors(plain, arrays, f"{chain}3_float.", near)
        assert torch.equal(plain(x), before)
        bits, bias_bits = (layer.planes(keys).bits if keys in layer.tensors else 1 for keys in (WEIGHT, BIAS))
        again: Any = BitLinear(plain, bits, bias_bits) if linear else BitConv2d(plain, bits)
        check_tensors(again, arrays, f"{chain}4_bin.", near)
        near(again(x), arrays[f"{chain}4_bin.y"], chain + "4", kernels)


def test_a_dead_tensor_counts_no_bit_and_keeps_a_trainable_plane(recorded: Any) -> None:
    layer = from_planes(recorded, "rt.dead.")
    assert layer.bits() == 0 and layer.weight_codes().grid.bits == 0
    x = recorded["roundtrip_act"]["rt.conv.x"]
    layer(x).sum().backward()
    assert layer.pweight.grad.abs().max() > 0
