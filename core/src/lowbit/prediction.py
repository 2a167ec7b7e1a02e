"""`lowbit.predict(file, pictures)`: the likeliest classes of pictures, by the net of a checkpoint or an export."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.data.folders import EXTENSIONS, is_folder, list_pictures
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import FolderPictures
from lowbit.data.recipe import from_timm
from lowbit.description import is_program
from lowbit.errors import InputError, printable
from lowbit.evaluate.classify import evaluating
from lowbit.files import check_output_file, replace_file
from lowbit.loading import Opened, open_file
from lowbit.models.create import picture_settings
from lowbit.models.pretrained_cfg import ENTRY
from lowbit.options import WORKERS
from lowbit.quant.calibrate import unfixed
from lowbit.train.process import make_accelerator, precision_here, until_stopped

BATCH = 64  # pictures at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """Of one picture: its classes, the likeliest first, and their probabilities in [0, 1]."""

    picture: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __str__(self) -> str:
        found = zip(self.classes, self.probabilities, strict=True)
        return printable(f"{self.picture}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in found))


@dataclass(frozen=True)
class Predictions:
    """Of all pictures that can be read, in their order.

    Attributes:
        file: of the net. rows: one for each picture. unreadable: pictures that are left out, each named in the log.
        output: the CSV that was written, if one was.
    """

    file: Path
    rows: tuple[Prediction, ...]
    unreadable: tuple[Path, ...]
    output: Path | None = None


def predict(
    file: Path | str,
    pictures: Path | str | Sequence[Path | str],
    *,
    top: int = 5,
    output: Path | str | None = None,
    overwrite: bool = False,
    workers: int = WORKERS,
) -> Predictions:
    """Show pictures to a net as its file says, and name their classes.

    Args:
        file: a checkpoint or an export with a classifier (`lowbit.show` says whether it has one).
        pictures: picture files, and folders, of which all pictures below are taken in the order of their names.
        top: classes to name, at most those that there are.
        output: a CSV file to write: a row for each picture, with a pair of columns for each class.
        overwrite: replace it.
        workers: processes that read pictures.

    Raises:
        InputError: what `lowbit.load` refuses, a net without a classifier, no picture that can be read, or a CSV that
            cannot be written; nothing is written then.
        Stopped: a stop signal came.
    """
    path, target = Path(file), None if output is None else Path(output)
    paths = _listed([pictures] if isinstance(pictures, str | Path) else pictures)
    if top < 1:
        raise InputError(f"{top} classes to name: give 1 or more")
    if target is not None:
        check_output_file(target, overwrite, [path, *paths])
    opened = _open_classifier(path)
    shown = FolderPictures("those to predict", (), paths, torch.full((len(paths),), -1))
    rows = tuple(_predicted(opened, shown, top, workers))
    seen = {row.picture for row in rows}
    unreadable = tuple(picture for picture in paths if picture not in seen)
    if not rows:
        raise InputError(f"none of the {len(paths)} pictures can be read, such as {paths[0]}: name others")
    if target is not None:
        replace_file(target, _csv(rows).encode(errors="surrogateescape"))
    return Predictions(path, rows, unreadable, target)


def _open_classifier(path: Path) -> Opened:
    """The net of a file.

    Raises:
        InputError: it cannot name the class of one picture.
    """
    if is_program(path):
        raise InputError(
            f"{path} is a program of torch.export, and code of a file is never run here: name the .safetensors that "
            "was exported beside it"
        )
    opened = open_file(path)
    if not opened.outputs:
        of = opened.said.get("package")
        raise InputError(
            f"{path} holds no classifier, a backbone alone: train one on it (a linear probe"
            f"{f'; {of} --help lists the command' if of else ''}) and name that run's checkpoint"
        )
    norms = (module for module in opened.model.modules() if isinstance(module, _BatchNorm))
    if any(norm.running_mean is None for norm in norms):
        raise InputError(
            f"{path} has no batch-norm statistics (it was trained at several widths), so one picture has no answer of "
            "its own: export one width, and name that file"
        )
    return opened


@torch.no_grad()
def _predicted(opened: Opened, pictures: FolderPictures, top: int, workers: int) -> Iterator[Prediction]:
    model, classes = opened.model, opened.classes
    if ENTRY not in opened.said:
        log.warning("the file does not say how pictures are shown to its net: they are shown as timm has it")
    if alone := bool(unfixed(model)):
        log.warning("activation ranges are each batch's own: pictures are shown one at a time (an export fixes them)")
    accelerator = make_accelerator(precision_here() or "no")
    model.to(accelerator.device)
    loader = EvalLoader(
        pictures, from_timm(picture_settings(model))[1], batch_size=1 if alone else BATCH, device=accelerator.device,
        dtype=_dtype(model), workers=workers if len(pictures) > BATCH else 0, max_corrupt=1.0,
    )  # fmt: skip
    with evaluating(model):
        for batch in until_stopped(loader, accelerator, "prediction"):
            found = _probabilities(model(batch.views[0])).topk(min(top, len(classes)), dim=1)
            for at, shares, order in zip(
                batch.index.tolist(), found.values.tolist(), found.indices.tolist(), strict=True
            ):
                yield Prediction(pictures.paths[at], tuple(classes[number] for number in order), tuple(shares))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _probabilities(logits: Tensor) -> Tensor:
    if not bool(torch.isfinite(logits).all()):
        raise InputError("the net's outputs hold NaN or infinity: that run diverged; name a checkpoint from before")
    return logits.double().softmax(dim=1)


def _listed(given: Sequence[Path | str]) -> list[Path]:
    """Files as they are named, and those of folders.

    Raises:
        InputError: nothing is named, something is missing or may not be read, or a folder holds no picture.
    """
    if not given:
        raise InputError("no picture is named: give picture files, or folders of them")
    found: list[Path] = []
    for path in map(Path, given):
        try:
            inside = list_pictures([path])[0] if is_folder(path) else [path]
            missing = not path.exists()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror or error}): correct that, or name another"
            ) from error
        if missing:
            raise InputError(f"there is no {path}: name picture files, or folders of them")
        if not inside:
            raise InputError(f"no picture was found in {path}; known are {', '.join(sorted(EXTENSIONS))}")
        found += inside
    return found


def _csv(rows: Sequence[Prediction]) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = range(1, len(rows[0].classes) + 1)
    writer.writerow(["picture", *(name for n in numbers for name in (f"class_{n}", f"probability_{n}"))])
    for row in rows:
        pairs = zip(row.classes, row.probabilities, strict=True)
        writer.writerow([row.picture, *(value for name, share in pairs for value in (name, f"{share:.6f}"))])
    return text.getvalue()
