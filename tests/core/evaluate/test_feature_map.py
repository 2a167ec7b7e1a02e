"""A map of features keeps groups together."""

import numpy as np

from lowbit.evaluate.feature_map import tsne


def test_groups_stay_groups() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 1, 16)) * 9 + random.normal(size=(3, 20, 16))
    found = tsne(x.reshape(60, 16), seed=0).reshape(3, 20, 2)
    middles = found.mean(1, keepdims=True)
    within = np.linalg.norm(found - middles, axis=2).max()
    assert within < 0.5 * min(np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
