"""The demos' tables and pictures in the READMEs: written from their runs, or compared with them.

Usage: uv run python tools/write_demos.py [--run] [--check]

--run first runs the five demos into `runs/METHOD-demo`, four minutes of processor time; without it they are there.
--check writes nothing, names the tables that differ, and ends with 1 if one does.

A method's README gets the demo's `table.md` between its markers and its `demo.png` beside it. `demos.png` of the root
README has a panel for each method, drawn from `result.json`. Pictures have 64 colours, so that they are small, and hold
their tables as text (`Description`), which shows what they belong to.
"""

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("bsq", "ssql", "us3l", "s2bnn", "sqakd")
BEGIN, END = "<!-- demo table: begin (tools/write_demos.py writes it) -->\n", "<!-- demo table: end -->"
COLOURS = 64
LEAST = 10  # points of accuracy on an axis: one of the 360 test pictures is 0.28
SQAKD = {"qat": "2 bits, with labels", "sqakd": "2 bits, without labels"}
Points = Sequence[tuple[Any, float]]


class Panel(NamedTuple):
    """A panel of the root README's picture: top-1 accuracy (percent) over what the method varies."""

    title: str
    xlabel: str
    series: Mapping[str, Points]
    style: str = "o-"


def demo_table(root: Path, method: str) -> str:
    """What a demo wrote."""
    return (root / f"runs/{method}-demo/table.md").read_text(encoding="utf-8").strip()


def readme_table(root: Path, method: str) -> str:
    """The table that the method's README shows."""
    return _parts(root / method / "README.md")[1].strip()


def _parts(readme: Path) -> tuple[str, str, str]:
    """A README up to its demo table, the table, and what follows."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    table, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{readme}: the demo table's markers are missing")
    return before + begin, table, end + after


def differing(root: Path) -> list[str]:
    """Print of each README's table whether it is the demo's; the methods whose table is another."""
    found = [method for method in METHODS if demo_table(root, method) != readme_table(root, method)]
    for method in METHODS:
        said = "differs from what the demo wrote: run write_demos.py" if method in found else "is what the demo wrote"
        print(f"the table in {method}/README.md {said}")
    return found


def panels(results: Mapping[str, Mapping[str, Any]]) -> Iterator[Panel]:
    """The picture's panels from `result.json` of each demo."""
    float_net, *converted, found, tuned = ((row["bytes"] / 1000, row["top1"]) for row in results["bsq"]["rows"])
    sizes = {"float": [float_net], "8, 4, 3 bits in all layers": converted, "bits found by BSQ": [found, tuned]}
    yield Panel("BSQ: bits of each layer", "file, kB", sizes)
    bits = _by_method(results["ssql"]["rows"], "variant", "probe_top1")
    yield Panel("SSQL: one network, many bit-widths", "bits of weights and activations", bits)
    widths = _by_method(results["us3l"]["rows"], "macs", "probe_top1_retrained_bn")
    yield Panel("US3L: one network, many widths", "million MACs", widths)
    teacher, *rows = results["s2bnn"]["rows"]
    steps = _by_method(rows, "variant", "probe_top1_retrained")
    at_teacher = [(place, teacher["probe_top1_retrained"]) for points in steps.values() for place, _ in points]
    yield Panel("S2-BNN: binary networks", "what is binary", {**steps, "real-valued teacher": at_teacher})
    rows = results["sqakd"]["rows"]
    low = {label: [(row["variant"].upper(), row[key]) for row in rows] for key, label in SQAKD.items()}
    low["float teacher"] = [(row["variant"].upper(), results["sqakd"]["top1_float"]) for row in rows]
    yield Panel("SQAKD: 2 bits by distillation", "quantizer", low, "o")


def _by_method(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[str, list[tuple[Any, float]]]:
    """Points of each method; MACs in millions, names in short lines."""
    found: dict[str, list[tuple[Any, float]]] = {}
    for row in rows:
        place = row[x] / 1e6 if x == "macs" else fill(row[x], 12)
        found.setdefault(row["method"], []).append((place, row[y]))
    return found


def draw(results: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The root README's picture as a PNG; its last panel is the bits that BSQ found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = iter(figure.subplots(2, 3).flat)
    for panel in panels(results):
        ax = next(axes)
        for label, points in panel.series.items():
            ax.plot(*zip(*points, strict=True), panel.style, label=label)
        ax.set(title=panel.title, xlabel=panel.xlabel, ylabel="top-1, %")
        ax.margins(x=0.12)
        low, high = ax.dataLim.intervaly
        ax.set_ylim(min(low, high - LEAST) - 0.7, high + 0.7)
        ax.tick_params("x", labelsize=8)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    ax, layers = next(axes), results["bsq"]["layers"]
    ax.bar_label(ax.barh([row["layer"] for row in layers], [row["bits"] for row in layers]))
    ax.invert_yaxis()
    ax.set(title="BSQ: bits found", xlabel="magnitude bits")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=85)
    return drawn.getvalue()


def save(picture: bytes, path: Path, table: str) -> None:
    """Write a PNG in few colours, with the table it belongs to."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    facts = PngInfo()
    facts.add_text("Description", table, zip=True)
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS).save(path, optimize=True, pnginfo=facts)
    print(f"{path.name} of {path.parent.name}: {path.stat().st_size / 1000:.0f} kB")


def write(root: Path) -> None:
    """Tables and pictures of all READMEs."""
    tables = {method: demo_table(root, method) for method in METHODS}
    for method, table in tables.items():
        readme = root / method / "README.md"
        before, _, after = _parts(readme)
        readme.write_text(f"{before}{table}\n{after}", encoding="utf-8")
        save((root / f"runs/{method}-demo/demo.png").read_bytes(), root / method / "demo.png", table)
    results = {method: json.loads((root / f"runs/{method}-demo/result.json").read_text()) for method in METHODS}
    save(draw(results), root / "demos.png", "\n\n".join(tables.values()))


def main() -> int:
    """Run, compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for method in METHODS if args.run else ():
        subprocess.run([sys.executable, "-m", method, "demo"], cwd=ROOT, check=True)
    if args.check:
        return int(bool(differing(ROOT)))
    write(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
