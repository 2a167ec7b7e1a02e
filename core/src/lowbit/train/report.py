"""A command that describes a file: on stdout, and with `--output` in a folder that it may not take from a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowbit.files import write_json
from lowbit.options import RunOptions
from lowbit.outcome import note_figures
from lowbit.train import console
from lowbit.train.folder import RunFolder


def write_report(
    options: RunOptions, own: Any, path: Path | None, files: Sequence[str],
    make: Callable[[], tuple[Mapping[str, Any], Iterable[str]]],
    more: Callable[[Path, Mapping[str, Any], Sequence[str]], object],
) -> dict[str, Any]:  # fmt: skip
    """What `make` finds; its lines go to stdout, with `--output` it also becomes `report.json`.

    Args:
        options: shared.
        own: of the command, a dataclass.
        path: the file that is described, if there is one.
        files: patterns of the method's own files.
        make: describes it, in plain values and in lines.
        more: writes further files, of both, into the folder.

    Raises:
        InputError: the folder holds a run, or what `make` raises; before anything is written.
    """
    if options.output is not None:
        RunFolder.check(options.output, overwrite=options.overwrite, inputs=(path,), files=files)
    found, said = make()
    lines = list(said)
    if options.output is not None:
        config = {"command": "report", **asdict(options), **asdict(own)}
        with RunFolder.open(options.output, config, overwrite=options.overwrite, files=files) as folder:
            write_json(folder.path / "report.json", found)
            more(folder.path, found, lines)
    note_figures(found)
    console.say(*lines)
    return dict(found)
