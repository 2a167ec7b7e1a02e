"""`lowbit.show(file)`: what a checkpoint or an export is.

Which net, whose, at which bits; its classes, how pictures are shown to it, its figures, the size of each layer. No code
of the file is run: of a program of `torch.export` only the description that our exports put in is read.
"""

import json
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.checkpoint.budget import MOST_HEADER, check_records, parse_json
from lowbit.cost import FLOAT_BITS, LayerCost, cost
from lowbit.errors import InputError, naming, printable
from lowbit.export.program import SAID
from lowbit.files import finite, open_regular
from lowbit.loading import CODED, Opened, open_file
from lowbit.models.create import picture_settings
from lowbit.models.pretrained_cfg import ENTRY, NAMES, checked_cfg
from lowbit.options import MOST_CLASSES
from lowbit.quant.calibrate import unfixed

RESULT = "result.json"
FIGURES = ("top1", "top5", "loss", "compression")  # parts of the names of those that are shown
KINDS = {
    "checkpoint": "checkpoint{of}",
    "packed": "packed export{of}, codes at their own bits",
    "float": "export{of} to safetensors, float weights",
    "program": "program of torch.export",
}
MOST_NAMES = 10  # of classes that are shown


@dataclass(frozen=True)
class Description:
    """What a file is.

    Attributes:
        file: its path. bytes: its size.
        kind: of KINDS. method: import name of the package that wrote it; None: not stated.
        net: timm name; None: not stated. type: of a method's checkpoint, such as "classifier"; None: not stated.
        classes: names in the order of the outputs; empty: the net has no classifier.
        pictures: how they are shown to it, under the names of timm's `pretrained_cfg`; pictures_stated: whether the
            file says it (else it is what timm has for the net).
        facts: what else is stated: format, release, epoch, step, width, binarization.
        figures: accuracies in percent, losses, compressions; figures_of: where they stand.
        by_batch: activation quantizers whose range is each batch's own.
        layers: sizes and work for one picture, of a net without classifier its backbone's; empty of a program.
    """

    file: Path
    bytes: int
    kind: str
    method: str | None
    net: str | None
    type: str | None
    classes: tuple[str, ...]
    pictures: dict[str, Any]
    pictures_stated: bool
    facts: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    figures_of: str = ""
    by_batch: tuple[str, ...] = ()
    layers: tuple[LayerCost, ...] = ()

    @property
    def bits(self) -> dict[str, Counter[int]]:
        """{"weights", "inputs": {bits: layers}} of the layers that multiply; 32: float. The sign is counted."""
        rows = [row for row in self.layers if row.macs]
        inputs = Counter(FLOAT_BITS if row.input_bits is None else row.input_bits for row in rows)
        return {"weights": Counter(row.bits for row in rows), "inputs": inputs}

    @property
    def totals(self) -> dict[str, int]:
        """Over the layers: parameters, multiply-accumulates, bit operations, stored bytes, bytes as floats."""
        rows = self.layers
        names = ("parameters", "macs", "bops")
        totals = {name: sum(getattr(row, name) for row in rows) for name in names}
        return {
            **totals,
            "bytes": -(-sum(row.stored_bits for row in rows) // 8),
            "bytes_float": 4 * totals["parameters"],
        }

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        rows = [{**asdict(row), "bops": row.bops, "bytes": row.bytes} for row in self.layers]
        found = {**asdict(self), "file": str(self.file), "layers": rows, "bits": self.bits, "totals": self.totals}
        return dict(finite(found))

    def __str__(self) -> str:
        return "\n".join(map(printable, _lines(self)))


def show(file: Path | str) -> Description:
    """Say what a checkpoint or an export is; `print` shows it, `plain()` gives it for JSON.

    Args:
        file: as `lowbit.load` reads it, or a program of `torch.export` that we wrote.

    Raises:
        InputError: missing, damaged, or of a method that is not installed (the message names its package).
    """
    path = Path(file)
    said = _said_by_program(path)
    return _of_net(path, open_file(path)) if said is None else _of_program(path, said)


def _of_net(path: Path, opened: Opened) -> Description:
    model, said, classes = opened.model, opened.said, opened.classes
    pictures = picture_settings(model)
    if not classes and hasattr(model, "reset_classifier"):
        model.reset_classifier(0)  # type: ignore[operator]  # a projector is no part of what is used
    channels, height, width = pictures["input_size"]
    figures, source = _figures(path, said, opened.figures)
    whose, layers = said.get("package", said.get("method")), cost(model, (channels, height, width)).layers
    return Description(
        path, path.stat().st_size, opened.kind, _text(whose), _text(said.get("arch")), _text(said.get("type")), classes,
        pictures, ENTRY in said, _facts(said), figures, source, tuple(unfixed(model)),
        tuple(_as_stored(row, model, said.get(CODED, {})) for row in layers),
    )  # fmt: skip


def _as_stored(row: LayerCost, model: nn.Module, coded: Mapping[str, Any]) -> LayerCost:
    """A layer of a packed file, which computes with floats and is stored as codes with their scales."""
    bits, stored = row.bits, row.stored_bits
    for name, tensor in model.get_submodule(row.name).named_parameters(recurse=False):
        said = coded.get(f"{row.name}.{name}" if row.name else name)
        if said is not None and row.parameters:  # shared weights count once
            scales = math.prod(said.get("scale", []))
            stored += said["bits"] * tensor.numel() + FLOAT_BITS * (scales - tensor.numel())
            bits = said["bits"] if name == "weight" else bits
    return replace(row, bits=bits, stored_bits=stored)


def _of_program(path: Path, said: Mapping[str, Any]) -> Description:
    with naming(path):
        cfg, count = checked_cfg(said.get(ENTRY)), said.get("num_classes")
        if type(count) is not int or not 0 <= count <= MOST_CLASSES:
            raise InputError(f"its num_classes is {count!r:.80}: name another file")
    names = cfg.get(NAMES) or [str(number) for number in range(count)]
    figures, source = _figures(path, {}, {})
    return Description(
        path, path.stat().st_size, "program", None, _text(said.get("of")), None, tuple(names), cfg, True,
        _facts(said), figures, source,
    )  # fmt: skip


def is_program(path: Path) -> bool:
    """Whether a file is a program of `torch.export` (an archive with one name for what is inside)."""
    return _member(path, "archive_format") is not None


def _said_by_program(path: Path) -> dict[str, Any] | None:
    """What our description in a program says; None: the file is no program.

    Raises:
        InputError: a program that is damaged, or not of ours.
    """
    if not is_program(path):
        return None
    check_records(path)
    name = _member(path, f"extra/{SAID}")
    if name is None:
        raise InputError(f"{path} is a program of torch.export that nothing here wrote: torch.export.load reads it")
    try:
        with zipfile.ZipFile(path) as archive:
            return parse_json(archive.read(name).decode())
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:150]}); export it again") from error


def _member(path: Path, end: str) -> str | None:
    """Name of the entry of an archive that stands at `end` below its only folder; None: there is none."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return next((name for name in names if name.partition("/")[2] == end), None)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _facts(said: Mapping[str, Any]) -> dict[str, Any]:
    names = ("format", "release", "epoch", "step", "width", "widths", "binarization", "statistics")
    return {name: said[name] for name in names if said.get(name) is not None}


def _figures(path: Path, said: Mapping[str, Any], stated: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """Figures and where they stand: `stated` by the file, else in the `result.json` beside it."""
    last = said.get("last")
    if own := _numbers(stated):
        return own, "of this net"
    if "figures" not in said and isinstance(last, Mapping) and (found := _numbers(last.get("eval"))):
        return found, "of its last evaluation"
    try:
        with open_regular(path.with_name(RESULT)) as file:
            result = parse_json(file.read(MOST_HEADER).decode())
    except (OSError, ValueError):
        return {}, ""
    return _numbers(result), f"of {RESULT} beside it"


def _numbers(values: Any) -> dict[str, float]:
    found = values.items() if isinstance(values, Mapping) else ()
    return {
        str(name): value
        for name, value in found
        if type(value) in (int, float) and any(part in str(name) for part in FIGURES)
    }


def _lines(of: Description) -> Iterator[str]:
    """The description as text: a line for each kind of fact, then the layers as a Markdown table."""
    kind = KINDS[of.kind].format(of=f" of {of.method}" if of.method else "")
    yield f"{of.file}: {kind}, {of.bytes:,} bytes"
    facts = ", ".join(f"{name} {_short(value)}" for name, value in of.facts.items())
    yield f"net       {of.net or 'not stated'}{f' ({of.type})' if of.type else ''}{f'; {facts}' if facts else ''}"
    yield f"classes   {_classes(of)}"
    yield from (f"{kind:9} {_bits(found)}" for kind, found in of.bits.items() if found)
    if of.by_batch and of.classes:
        yield f"ranges    {len(of.by_batch)} activation ranges are each batch's own: an export fixes them"
    yield f"pictures  {_pictures(of)}"
    if of.figures:
        values = ", ".join(f"{name} {_short(value)}" for name, value in of.figures.items())
        yield f"figures   {values} ({of.figures_of})"
    if of.kind == "program":
        yield "to run    torch.export.load(FILE).module(); layers are not shown, code of a file is never run here"
    if of.layers:
        yield "size      {bytes:,} bytes stored, {bytes_float:,} as floats; {parameters:,} parameters".format(
            **of.totals
        )
        yield "work      {macs:,} multiply-accumulates, {bops:,} bit operations a picture".format(**of.totals)
        yield ""
        yield from _table(of)


def _classes(of: Description) -> str:
    if not of.classes:
        return (
            "none, a backbone alone; to predict, train a classifier on it (a linear probe), name that run's checkpoint"
        )
    more = f", ... {of.classes[-1]}" if len(of.classes) > MOST_NAMES else ""
    return f"{len(of.classes)}: {', '.join(of.classes[: MOST_NAMES - bool(more)])}{more}"


def _bits(found: Mapping[int, int]) -> str:
    ordered = sorted(found.items())
    named = [(_count(bits, "bit") if bits < FLOAT_BITS else "float", layers) for bits, layers in ordered]
    return ", ".join(f"{name} in {_count(layers, 'layer')}" for name, layers in named)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _pictures(of: Description) -> str:
    cfg, size = of.pictures, of.pictures["input_size"]
    share = 100 * float(cfg.get("crop_pct", 1))
    mean, std = ([round(float(x), 4) for x in cfg.get(name, ())] for name in ("mean", "std"))
    shown = f"{'x'.join(map(str, size))}, {cfg.get('interpolation')}, {cfg.get('crop_mode', 'center')} {share:g} %"
    return f"{shown}, mean {mean}, std {std}{'' if of.pictures_stated else ' (not stated: as timm has the net)'}"


def _table(of: Description) -> Iterator[str]:
    yield "| layer | kind | parameters | bits | input bits | MACs | bytes |"
    yield "|---|---|---|---|---|---|---|"
    for row in of.layers:
        bits = "float" if row.bits == FLOAT_BITS else row.bits
        inputs = "" if not row.macs else "float" if row.input_bits is None else row.input_bits
        yield f"| {row.name} | {row.kind} | {row.parameters:,} | {bits} | {inputs} | {row.macs:,} | {row.bytes:,} |"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:.2f}"
    return json.dumps(value, default=str) if isinstance(value, list | Mapping) else str(value)
