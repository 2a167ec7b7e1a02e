"""The program `lowbit`: what a file is, what its net says of pictures, how runs went, what is installed."""

import json
from pathlib import Path

import click

from lowbit import __version__
from lowbit.cli.parsing import COUNT, WORKER_COUNT, UserPath
from lowbit.cli.program import Group
from lowbit.options import WORKERS
from lowbit.train import console

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the file that --output names.")


@click.group(cls=Group, name="lowbit")
@click.version_option(__version__)
def cli() -> None:
    """What all methods share: look at files, predict, compare runs, check the installation."""


main = cli.script  # the console script


@cli.command("show")
@click.argument("file", type=UserPath())
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(file: Path, as_json: bool) -> None:
    """Say what FILE is, a checkpoint or an export: net, bits, classes, pictures, figures, size of each layer."""
    from lowbit.description import show

    found = show(file)
    console.say(json.dumps(found.plain(), indent=2, default=str) if as_json else str(found))


@cli.command("predict")
@click.argument("file", type=UserPath())
@click.argument("pictures", type=UserPath(), nargs=-1, required=True)
@click.option("--top", type=COUNT, default=5, show_default=True, help="Classes to name.")
@click.option("--output", type=UserPath(), metavar="CSV", help="Also write a CSV file, a row for each picture.")
@OVERWRITE
@click.option("-j", "--workers", type=WORKER_COUNT, default=WORKERS, show_default="4, or the cores if fewer",
              help="Processes that read pictures.")  # fmt: skip
def predict(
    file: Path, pictures: tuple[Path, ...], top: int, output: Path | None, overwrite: bool, workers: int
) -> None:
    """Name the likeliest classes of PICTURES (files, or folders) by the net of FILE, a checkpoint or an export."""
    from lowbit.prediction import predict

    found = predict(file, pictures, top=top, output=output, overwrite=overwrite, workers=workers)
    console.say(*map(str, found.rows))


@cli.command("plot", loads="matplotlib")
@click.argument("runs", metavar="RUN", type=UserPath(), nargs=-1, required=True)
@click.option("--output", type=UserPath(), metavar="PNG", default=Path("curves.png"), show_default=True)
@OVERWRITE
def plot(runs: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Draw the curves of several runs, each the folder of one, into one picture."""
    from lowbit.curves import plot_runs
    from lowbit.files import check_output_file

    check_output_file(output, overwrite)
    plot_runs(runs, output)
    console.say(str(output))


@cli.command("doctor", loads="what is installed")
def doctor() -> int:
    """Check what is installed: versions, torch with torchvision, devices, extras, methods. Exit code 1: not sound."""
    from lowbit.installation import doctor

    found = doctor()
    console.say(str(found))
    return 0 if found.healthy else 1
