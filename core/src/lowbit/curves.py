"""`curves.png`: what `metrics.jsonl` says, as a picture; several runs lie side by side (no torch here)."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.errors import InputError, one_line
from lowbit.files import save_figure
from lowbit.metrics import accuracies, number, read_metrics, words

CURVES = "curves.png"
COLUMNS = 3  # panels in a row
APART = 20  # losses of a larger ratio lie on a logarithmic axis
AT_WIDTH = re.compile(r"top1_w?(\d+\.?\d*)$")  # accuracy at a width of the net, a fraction
Lines = Sequence[Mapping[str, Any]]

log = logging.getLogger(__name__)


class Curve(NamedTuple):
    """A curve of one run: what it shows, and its points (x, y)."""

    name: str
    points: list[tuple[float, float]]


def plot_run(folder: Path) -> None:
    """Write `curves.png` into the folder of a run that is over; nothing where it has no figure yet.

    What is in the way of a picture is a warning: it is no reason to end a run with an error.
    """
    try:
        draw({"": read_metrics(folder / "metrics.jsonl")}, folder / CURVES)
    except InputError as error:
        log.warning("no %s: %s", CURVES, error)


def plot_runs(folders: Path | str | Sequence[Path | str], output: Path | str) -> None:
    """Draw several runs into one picture: a panel per kind of figure with a colour for each run, maps of bits beside.

    Args:
        folders: of runs, or of one.
        output: the PNG; one that is there is replaced.

    Raises:
        InputError: a folder without a metrics file, or without a figure in it; the picture cannot be written.
    """
    runs: dict[str, Lines] = {}
    paths = [Path(folder) for folder in ([folders] if isinstance(folders, str | Path) else folders)]
    for folder in paths:
        path = folder / "metrics.jsonl"
        lines = read_metrics(path)
        if not lines:
            raise InputError(f"{path} holds no figure: name the folder of a run that has trained for an epoch")
        runs[folder.name if folder.name not in runs else str(folder)] = lines
    if not draw(runs, Path(output)):
        raise InputError(f"{', '.join(map(str, paths))}: no figure can be drawn; name runs that trained for an epoch")


def draw(runs: Mapping[str, Lines], path: Path) -> bool:
    """Draw the curves of runs, by name, as a PNG; False where they have no point yet, and nothing is written.

    Raises:
        InputError: it cannot be written.
    """
    found = {title: {name: list(curves(lines)) for name, lines in runs.items()} for title, curves in PANELS.items()}
    panels = {title: of for title, of in found.items() if any(of.values())}
    maps = {name: bits for name, lines in runs.items() if (bits := bits_by_layer(lines))}
    count = len(panels) + len(maps)
    if not count:
        return False
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    axes = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for title, of in panels.items():
        _draw_curves(next(axes), title, of)
    for name, bits in maps.items():
        _draw_bits(next(axes), bits, name if len(runs) > 1 else "")
    for left in axes:
        left.set_axis_off()
    save_figure(figure, path)
    return True


def _points(lines: Lines, event: str, value: Callable[[Mapping[str, Any]], Any]) -> list[tuple[float, float]]:
    """(step, value) of the lines of an event that have both."""
    pairs = ((number(line.get("step")), number(value(line))) for line in lines if line.get("event") == event)
    return [(step, y) for step, y in pairs if step is not None and y is not None]


def _trained(lines: Lines, value: Callable[[Mapping[str, Any]], Any]) -> list[tuple[float, float]]:
    """By interval; by epoch where there are no intervals."""
    found = _points(lines, "step", value)
    return found if len(found) > 1 else _points(lines, "epoch", value)


def losses(lines: Lines) -> Iterator[Curve]:
    """The loss of training, its cross-entropy where it has further parts, and that of the test."""
    yield from _there(Curve("training", _trained(lines, lambda line: line.get("loss"))))
    yield from _there(Curve("training, cross-entropy", _trained(lines, lambda line: line.get("ce"))))
    yield from _there(Curve("test", _points(lines, "eval", lambda line: line.get("loss"))))


def accuracy(lines: Lines) -> Iterator[Curve]:
    """Every accuracy that was taken after epochs."""
    names = dict.fromkeys(key for line in lines if line.get("event") == "eval" for key in accuracies(line))
    for name in names:
        yield Curve(words(name), _points(lines, "eval", lambda line, name=name: line.get(name)))  # type: ignore[misc]


def rates(lines: Lines) -> Iterator[Curve]:
    """The learning rates."""
    yield from _there(Curve("", _trained(lines, lambda line: line.get("lr"))))
    held = [line["lr"] for line in lines if isinstance(line.get("lr"), Mapping)]
    for name in dict.fromkeys(name for rates in held for name in rates):
        yield from _there(Curve(name, _trained(lines, lambda line, name=name: _entry(line.get("lr"), name))))  # type: ignore[misc]


def by_width(lines: Lines) -> Iterator[Curve]:
    """The last accuracy at each width of a net that has several."""
    last = next((line for line in reversed(lines) if line.get("event") == "eval" and accuracies(line)), {})
    found = {key: AT_WIDTH.search(key) for key in accuracies(last)}
    points = sorted((float(match[1]), float(last[key])) for key, match in found.items() if match)
    if len(points) > 1:
        yield Curve("", points)


PANELS: Mapping[str, Callable[[Lines], Iterator[Curve]]] = {
    "loss": losses,
    "accuracy, %": accuracy,
    "learning rate": rates,
    "accuracy by width, %": by_width,
}


def bits_by_layer(lines: Lines) -> dict[str, list[float]]:
    """Bits of each layer's weights after each re-quantisation, NaN where a line does not say them."""
    told = [line["bits"] for line in lines if line.get("event") == "requantize" and isinstance(line.get("bits"), dict)]
    layers = dict.fromkeys(layer for bits in told for layer in bits)
    found = {}
    for layer in layers:
        values = (number(_first(bits.get(layer))) for bits in told)
        found[layer] = [float("nan") if value is None else value for value in values]
    return found


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _entry(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _there(curve: Curve) -> list[Curve]:
    return [curve] if curve.points else []


def _draw_curves(axes: Any, title: str, runs: Mapping[str, Sequence[Curve]]) -> None:
    """One panel; with several runs each has its colour and each kind of curve its style, with one run the reverse."""
    kinds = list(dict.fromkeys(curve.name for curves in runs.values() for curve in curves))
    for number_of_run, (run, curves) in enumerate(runs.items()):
        for curve in curves:
            kind, several = kinds.index(curve.name), len(runs) > 1
            color, style = (number_of_run, kind) if several else (kind, 0)
            label = " ".join(part for part in (run if several else "", curve.name) if part)
            axes.plot(
                *zip(*curve.points, strict=True), ("-", "--", ":", "-.")[style % 4], color=f"C{color % 10}",
                label=_plain(label), marker="o" if len(curve.points) < 20 else None, markersize=3,
            )  # fmt: skip
    axes.set(title=title, xlabel="width" if "width" in title else "step")
    values = [y for curves in runs.values() for curve in curves for _, y in curve.points]
    if title == "loss" and min(values) > 0 and max(values) > APART * min(values):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if any(curve.name or len(runs) > 1 for curves in runs.values() for curve in curves):
        axes.legend(fontsize=7)


def _draw_bits(axes: Any, bits: Mapping[str, Sequence[float]], run: str) -> None:
    image = axes.imshow(list(bits.values()), aspect="auto", interpolation="nearest", vmin=0, cmap="viridis")
    axes.set(title=_plain(" ".join(filter(None, ("bits per layer", run)))), xlabel="re-quantisation")
    axes.set_yticks(range(len(bits)), map(_plain, bits), fontsize=min(7, 180 / len(bits)))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.figure.colorbar(image, ax=axes)


def _plain(text: str) -> str:
    """A name as matplotlib shows it as it is: $ begins no formula, _ hides no curve."""
    return one_line(text, 60).replace("$", r"\$").replace("_", " ", 1 if text.startswith("_") else 0)
