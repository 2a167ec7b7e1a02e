"""Everything that a checkpoint holds of a run, gathered from all processes and put back.

Random state is not in it: every draw is a function of the clock. Buffers that differ by rank (batch norm without
synchronisation, observers) and the meters of each rank are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from lowbit import __version__
from lowbit.checkpoint.check import check_kinds, tensors
from lowbit.errors import InputError
from lowbit.train.engine import Engine
from lowbit.train.optimizer_state import save_optimizers
from lowbit.train.position import Position
from lowbit.train.protocol import Objective
from lowbit.train.run import Run


def rename(state: Mapping[str, Any], prefixes: Mapping[str, str]) -> dict[str, Any]:
    """Change the beginnings of keys; the longest prefix that fits is taken."""
    ordered = sorted(prefixes.items(), key=lambda pair: -len(pair[0]))

    def new(key: str) -> str:
        return next((to + key[len(old) :] for old, to in ordered if key.startswith(old)), key)

    return {new(key): value for key, value in state.items()}


def saved_state(objective: Objective) -> dict[str, Any]:
    """The objective's state dict without what is `rebuilt`; the tensors themselves."""
    state = objective.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if not objective.is_rebuilt(name)}


def local_buffers(objective: Objective, accelerator: Accelerator) -> dict[str, Tensor]:
    """The saved buffers whose values are not the same on all ranks, with this rank's values (a collective)."""
    if accelerator.num_processes == 1:
        return {}
    saved = saved_state(objective)
    buffers = {name: buffer for name, buffer in objective.named_buffers() if name in saved}
    differs = torch.zeros(len(buffers), device=accelerator.device)
    for number, buffer in enumerate(buffers.values()):
        mine = buffer.detach().contiguous().reshape(-1).view(torch.uint8)
        first = mine.clone()
        torch.distributed.broadcast(first, src=0)
        differs[number] = float(not torch.equal(first, mine))
    differs = accelerator.reduce(differs, "sum")
    return {name: buffers[name].detach().cpu() for name, flag in zip(buffers, differs.tolist(), strict=True) if flag}


def on_cpu(value: Any) -> Any:
    """Tensors inside dicts, lists and tuples, named ones too, on the CPU, so that a file reads on any machine."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: on_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        inside = [on_cpu(inner) for inner in value]
        return value._make(inside) if hasattr(value, "_make") else type(value)(inside)
    return value


def gather(
    engine: Engine, notes: Mapping[str, Any], position: Position, run: Run, figures: Mapping[str, float]
) -> dict[str, Any]:
    """The content of a checkpoint (a collective; only the first process gets all of it).

    Args:
        engine: objective and optimizers.
        notes: `lines`, `meter`, `best`, `last`, `seconds` of the loop at `position`.
        position: where the run stands.
        run: header, the method's own entries, prefixes.
        figures: the probes', of this very net.
    """
    scaler = run.accelerator.scaler
    local = {"buffers": local_buffers(engine.objective, run.accelerator), "meter": notes["meter"]}
    return {
        **run.header,
        "release": __version__,
        "step": position.done,
        "position": position._asdict(),
        "state_dict": on_cpu(rename(saved_state(engine.objective), run.prefixes)),
        "optimizer": on_cpu(save_optimizers(engine.optimizers)),
        "scaler": None if scaler is None else scaler.state_dict(),
        "ranks": gather_object([local]) if run.accelerator.num_processes > 1 else [local],
        **{name: value for name, value in notes.items() if name != "meter"},
        "figures": dict(figures),
        **(run.extra(engine.objective, figures) if run.extra else {}),
    }


def checkpoint_bytes(engine: Engine) -> int:
    """Bytes of weights and of what optimizers hold: a checkpoint's, but for notes."""
    held = [saved_state(engine.objective), *(optimizer.state_dict() for optimizer in engine.optimizers.values())]
    return sum(t.numel() * t.element_size() for state in held for _, t in tensors(state))


def load_weights(state: Mapping[str, Any], objective: Objective, run: Run) -> None:
    """Restore the objective but for what is `rebuilt`, then what is this rank's alone.

    Raises:
        InputError: the weights are another net's.
    """
    try:
        weights = rename(state["state_dict"], {to: old for old, to in run.prefixes.items()})
        if len(weights) < len(state["state_dict"]):
            raise RuntimeError("some tensors are there twice, with and without a prefix")
        now = objective.state_dict()
        check_kinds(weights, now)
        objective.load_state_dict({**weights, **{name: now[name] for name in now if objective.is_rebuilt(name)}})
    except (RuntimeError, KeyError) as error:  # KeyError: a layer that re-makes its parameters finds none
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--resume: the checkpoint's weights do not fit this net: {reason}") from error
    ranks = state["ranks"]
    if len(ranks) == run.accelerator.num_processes:
        buffers = dict(objective.named_buffers())
        mine = ranks[run.accelerator.process_index]["buffers"]
        check_kinds(mine, buffers)
        with torch.no_grad():
            for name, value in mine.items():
                buffers[name].copy_(value)


def local_meter(state: Mapping[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """This rank's meter; under another number of ranks the first takes all scalars."""
    meters = [rank["meter"] for rank in state["ranks"]]
    if len(meters) == accelerator.num_processes:
        return dict(meters[accelerator.process_index])
    recent = {}
    for name in meters[0]["recent"]:
        values = torch.cat([meter["recent"][name][0] for meter in meters])
        weights = [weight for meter in meters for weight in meter["recent"][name][1]]
        mine = accelerator.is_main_process
        recent[name] = [values if mine else values[:0], weights if mine else []]
    return {"recent": recent, "epoch": meters[0]["epoch"]}
