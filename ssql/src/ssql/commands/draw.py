"""`ssql draw`: a map of training features at given bits, by t-SNE, coloured by class.

van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008. As in the authors' program 5,100 training pictures
are shown (51 batches of 100) and the classifier is left out; here they are drawn class-balanced by a fixed seed, shown
as evaluation shows them, and written to `features.png` and `features.csv` in the run's folder (theirs: one fixed name
in the working folder). Any dataset will do.
"""

import logging
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.config.tree import dump_config
from lowbit.data.pictures import Pictures, balanced_subset
from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.evaluate.features import extract
from lowbit.evaluate.table import write_csv
from lowbit.files import replace_file
from lowbit.options import RunOptions
from lowbit.train.process import on_main
from ssql.bitwidths import Bits
from ssql.commands.common import open_session, refuse
from ssql.config import Config
from ssql.evaluation import QuantizedBackbone, open_backbone
from ssql.pictures import transforms_of

PICTURES = 51 * 100
PERPLEXITY = 30.0
FEWEST = 5

log = logging.getLogger(__name__)


def draw(options: RunOptions, config: Config, name: str) -> None:
    """Write the map of `MODEL.PRETRAINED` at QUANT.W.BIT and QUANT.A.BIT.

    Args:
        options: shared; `limit_train` replaces the authors' number of pictures.
        config: resolved.
        name: of the config, for the record.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came.
    """
    start = time.perf_counter()
    for key, value in (("MODEL.PRETRAINED", config.MODEL.PRETRAINED), ("TRAIN.DATASET", config.TRAIN.DATASET)):
        if not value:
            raise InputError(f"{key} is empty: give it in the config, or as {key}=VALUE after the command")
    refuse({"MODEL.CHECKPOINT": options.resume}, "in draw, which starts from the beginning each time")
    path, bits = Path(config.MODEL.PRETRAINED), Bits("", config.QUANT.W.BIT, config.QUANT.A.BIT)
    with open_session(options, config, [path], resumes=False) as session:
        session.download()
        pictures = session.pictures("train", options.limit_train)
        if len(pictures) > PICTURES and options.limit_train is None:
            pictures = pictures.subset(balanced_subset(pictures.labels, PICTURES))
        if len(pictures) < FEWEST:
            raise InputError(f"t-SNE of {len(pictures)} pictures: give {FEWEST} or more (--limit-train)")
        side = side_of(pictures, config.MODEL.side)
        backbone = open_backbone(path, config.MODEL.ARCH or None, (3, side, side))
        quantized = QuantizedBackbone(
            session, backbone, config.QUANT, pictures, transforms_of(config, pictures, side)[1]
        )
        facts = {"arch": backbone.arch, "pictures": len(pictures), "w_bits": bits.w, "a_bits": bits.a}
        if options.dry_run:
            session.say_facts(facts)
            return
        with quantized.at(bits):
            found = extract(quantized.net, quantized.loader(pictures), session.accelerator).x
        if not bool(torch.isfinite(found).all()):
            raise InputError(
                f"the features of {path} at {bits.w}/{bits.a} bits hold NaN or infinity: name another checkpoint, or "
                "leave out --mixed-precision"
            )
        with session.open_folder("draw", {"config_name": name, "config": dump_config(config)}, facts) as folder:
            assert folder is not None  # --output has a default
            on_main(session.accelerator, lambda: _write(found, pictures, options.seed, folder.path))
            session.write_result(folder, {**facts, "seconds": time.perf_counter() - start})


def _write(features: Tensor, pictures: Pictures, seed: int, folder: Path) -> None:
    """`features.csv` and `features.png`."""
    places = tsne(features.double().cpu().numpy(), seed)
    names = [pictures.classes[label] for label in pictures.labels.tolist()]
    write_csv([{"class": one, "x": x, "y": y} for one, (x, y) in zip(names, places.tolist(), strict=True)],
              folder / "features.csv")  # fmt: skip
    replace_file(folder / "features.png", picture(places, pictures.labels.numpy(), pictures.classes))


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """Features (N, D) to the plane, (N, 2), from the first two principal components on."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    places: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return places


def picture(places: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> bytes:
    """The map as a PNG; a legend for up to 20 classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    for number, name in enumerate(classes):
        here = places[label == number]
        axes.scatter(here[:, 0], here[:, 1], s=4, color=f"C{number % 10}", label=name)
    if len(classes) <= 20:
        axes.legend(markerscale=3, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    data = BytesIO()
    figure.savefig(data, dpi=120, format="png")
    return data.getvalue()
