"""The rows of a sweep as a Markdown table, as CSV and as a picture; accuracies in percent, MACs in millions."""

import csv
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from lowbit.files import replace_file, save_figure

Row = dict[str, Any]
FIGURES = {
    "probe_top1": "float probe",
    "probe_top1_retrained": "probe trained at each",
    "knn_top1": "k-NN",
}
REESTIMATED = "_bn"  # end of the keys of figures with batch-norm statistics re-estimated
TITLES = {"": "", REESTIMATED: ", batch norm re-estimated"}


def millions(count: float) -> str:
    """A number of MACs in millions, to four digits or more: `0.1159`, `35.04`, `12,346`."""
    return f"{count / 1e6:.4g}" if count < 1e9 else f"{count / 1e6:,.0f}"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The figures of a sweep as a Markdown table; a column of MACs where rows have them."""
    titles = {key + suffix: title + more for key, title in FIGURES.items() for suffix, more in TITLES.items()}
    shown = [key for key in titles if any(key in row for row in rows)]
    cost = ["MACs, M"] if any("macs" in row for row in rows) else []
    columns = ["variant", *cost, *(titles[key] for key in shown)]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        figures = (f"{row[key]:.2f}" if key in row else "" for key in shown)
        macs = (millions(row["macs"]) if "macs" in row else "" for _ in cost)
        yield f"| {' | '.join([row['variant'], *macs, *figures])} |"


def side_by_side(series: Mapping[str, Sequence[Row]], shown: Sequence[str], variants: str) -> Iterator[str]:
    """Several sweeps over the same variants as one Markdown table; a column of MACs where rows have them.

    Args:
        series: rows of each, by its name.
        shown: keys of the figures.
        variants: title of the first column.
    """
    titles = {key + suffix: title + more for key, title in FIGURES.items() for suffix, more in TITLES.items()}
    cost = any("macs" in row for rows in series.values() for row in rows)
    columns = [
        variants,
        *(["MACs, M"] if cost else []),
        *(f"{titles[key]}: {name}" for key in shown for name in series),
    ]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for rows in zip(*series.values(), strict=True):
        macs = [millions(rows[0]["macs"])] if cost else []
        yield f"| {' | '.join([rows[0]['variant'], *macs, *(f'{row[key]:.2f}' for key in shown for row in rows)])} |"


def write_sweep(rows: Sequence[Row], folder: Path, label: str) -> None:
    """`sweep.csv` and `sweep.png` in a folder that exists; one process calls it.

    Args:
        rows: of `sweep`; keys that only some rows have leave a gap in the others.
        folder: an earlier sweep there is replaced.
        label: the checkpoint's name in the picture.

    Raises:
        InputError: the folder cannot be written to.
    """
    write_csv(rows, folder / "sweep.csv")
    plot({label: rows}, folder / "sweep.png")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows as CSV, its columns in the order in which keys first come.

    Raises:
        InputError: the file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


def plot(series: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Accuracy by variant: a panel per kind of figure, a line per sweep, dashed with batch norm re-estimated.

    Where every row has its MACs they are the horizontal axis.

    Args:
        series: rows of one or several sweeps, by the name of the checkpoint.
        path: of the PNG.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    every = [row for rows in series.values() for row in rows]
    names = list(dict.fromkeys(row["variant"] for row in every))
    by_macs = all("macs" in row for row in every)
    shown = [key for key in FIGURES if any(key + suffix in row for row in every for suffix in TITLES)]
    figure = Figure(figsize=(1 + 4.4 * len(shown), 3.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        for number, (label, rows) in enumerate(series.items()):
            for suffix, style in (("", "-"), (REESTIMATED, "--")):
                there = [row for row in rows if key + suffix in row]
                x = [row["macs"] / 1e6 if by_macs else names.index(row["variant"]) for row in there]
                if there:
                    shade, name = f"C{number % 10}", label + TITLES[suffix]
                    axes.plot(x, [row[key + suffix] for row in there], style, marker="o", color=shade, label=name)
        axes.set(title=FIGURES[key], ylabel="top-1, %")
        if by_macs:
            axes.set(xlabel="MACs, M")
        else:
            said = [textwrap.fill(name, 14) for name in names]
            axes.set_xticks(range(len(names)), said, rotation=30 if len(names) > 5 else 0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def bars(series: Mapping[str, Sequence[float]], names: Sequence[str], level: tuple[str, float], path: Path) -> None:
    """Accuracies in percent as groups of bars.

    Args:
        series: a value for each of `names`, by the name of the method.
        names: of the groups.
        level: name and value of a line across.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        places = [group + (number + 0.5) * width - 0.4 for group in range(len(names))]
        drawn = axes.bar(places, values, 0.95 * width, label=label)
        axes.bar_label(drawn, fmt="%.1f", padding=-14, color="white")  # inside: the line may lie above
    axes.axhline(level[1], color="black", linestyle="--", label=level[0])
    axes.set(ylabel="top-1, %", ylim=(max(0, min(map(min, series.values())) - 15), 103))
    axes.set_xticks(range(len(names)), names)
    figure.legend(loc="outside upper center", ncols=len(series) + 1, fontsize=8)
    save_figure(figure, path)
