"""Batches of features in place of pictures."""

import torch

from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import DIGITS, plain
from lowbit.evaluate.cached import FeatureLoader, FromFeatures
from lowbit.evaluate.features import Features, pooled
from lowbit.models.create import create_model


def test_features_come_as_the_loader_would_bring_their_pictures() -> None:
    images = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pictures = MemoryPictures("made up", ["a", "b"], images, torch.arange(11) % 2)
    features = Features(torch.arange(22.0).view(11, 2), pictures.labels)
    for world in (1, 2):
        for rank in range(world):
            common = {"global_batch": 4, "seed": 9, "rank": rank, "world": world}
            ours, loader = FeatureLoader(features, **common), Loader(pictures, plain(DIGITS), **common)
            assert (len(ours), ours.last_batch) == (len(loader), loader.last_batch) == (3, 3)
            for found, like in zip(ours.epoch(2, 1), loader.epoch(2, 1), strict=True):
                assert torch.equal(found.index, like.index) and torch.equal(found.label, like.label)
                assert torch.equal(found.views[0], features.x[like.index]) and found.share == like.share
    in_order = [batch.index.tolist() for batch in FeatureLoader(features, global_batch=4, shuffle=False).epoch(0)]
    assert in_order == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_a_classifier_takes_pictures_or_their_features() -> None:
    net = create_model("cifar_resnet8_1x1", num_classes=3).eval()
    x = torch.randn(2, 3, 8, 8)
    asked = FromFeatures(net)
    torch.testing.assert_close(asked(x), asked(pooled(net, x)))
