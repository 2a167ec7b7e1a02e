"""A map of features: t-SNE to the plane, coloured by class, as CSV and as a picture.

van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowbit.data.pictures import Pictures
from lowbit.errors import InputError
from lowbit.evaluate.features import Features
from lowbit.evaluate.table import write_csv
from lowbit.files import save_figure

PERPLEXITY = 30.0
FEWEST = 5


def check_count(pictures: int) -> None:
    """Refuse a map of too few pictures.

    Raises:
        InputError: fewer than five.
    """
    if pictures < FEWEST:
        raise InputError(f"t-SNE of {pictures} pictures: give {FEWEST} or more (--limit-train)")


def write_map(features: Features, pictures: Pictures, seed: int, folder: Path) -> None:
    """`features.csv` and `features.png` in a folder that exists; one process calls it.

    Args:
        features: finite, labelled; a row for each picture that could be read.
        pictures: the set, which names the classes.
        seed: of t-SNE.
        folder: an earlier map there is replaced.

    Raises:
        InputError: the folder cannot be written to.
    """
    assert features.label is not None
    places = tsne(features.x.double().cpu().numpy(), seed)
    names = [pictures.classes[label] for label in features.label.tolist()]
    rows = [{"class": name, "x": x, "y": y} for name, (x, y) in zip(names, places.tolist(), strict=True)]
    write_csv(rows, folder / "features.csv")
    scatter(places, features.label.cpu().numpy(), pictures.classes, folder / "features.png")


def tsne(features: np.ndarray, seed: int) -> np.ndarray:
    """Features (N, D) to the plane, (N, 2), from the first two principal components on."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    places: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    return places


def scatter(places: np.ndarray, label: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Write the map (N, 2) as a PNG; a legend for up to 20 classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    for number, name in enumerate(classes):
        here = places[label == number]
        axes.scatter(here[:, 0], here[:, 1], s=4, color=f"C{number % 10}", label=name)
    if len(classes) <= 20:
        axes.legend(markerscale=3, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)
