from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wilcoxon
from torch import nn

from promptvit.analysis.faithfulness import against_random, deletion_insertion
from promptvit.errors import ConfigError, DataError
from promptvit.model import Classifier
from promptvit.preprocessing import Preprocessing

SIDE, PATCHES = 8, 4


class OnePatch(Classifier):
    """The first class is the more likely the larger the values of one patch are; all other pixels mean nothing."""

    classes = ("yes", "no")
    preprocessing = Preprocessing(size=(SIDE, SIDE))

    def __init__(self, y, x):
        super().__init__()
        self.place = slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2)
        self.dropout = nn.Dropout()

    def forward(self, images):
        score = self.dropout(images[:, :, *self.place]).mean(dim=(1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    def fold(self):
        return self.eval()

    @property
    def device(self):
        return torch.device("cpu")


@pytest.fixture
def images():
    return torch.rand(40, 3, SIDE, SIDE, dtype=torch.float64) + 1


@pytest.fixture
def exact(images):
    """Maps that are one at the patch that counts."""
    maps = torch.zeros(len(images), PATCHES, PATCHES)
    maps[:, 1, 2] = 1
    return maps


def literal_curves(model, image, order, target, steps):
    """Probabilities while pixels go, and while they come, one share after the other."""
    curves = [], []
    for step in range(steps + 1):
        count = -(-step * SIDE * SIDE // steps)
        for curve, chosen in zip(curves, (order[count:], order[:count]), strict=True):
            changed = torch.zeros_like(image)
            for pixel in chosen:
                y, x = divmod(int(pixel), SIDE)
                changed[:, y, x] = image[:, y, x]
            curve.append(model(changed[None]).softmax(dim=1)[0, target].item())
    return [sum((a + b) / 2 / steps for a, b in pairwise(curve)) for curve in curves]


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("steps", [1, 5, 16])
def test_they_are_areas_under_literal_curves(steps, target, images):
    model, images = OnePatch(1, 2), images[:3]
    maps = torch.rand(3, PATCHES, PATCHES)
    targets = None if target is None else torch.full((3,), target)
    found = deletion_insertion(model, images, maps, targets, steps=steps)
    assert model.training
    pixels = F.interpolate(maps[:, None].double(), (SIDE, SIDE), mode="bilinear").flatten(1).numpy()
    for number, image in enumerate(images):
        order = np.argsort(-pixels[number], kind="stable")
        with torch.no_grad():
            expected = literal_curves(model.eval(), image, order, target or 0, steps)
        assert found.deletion[number] == pytest.approx(expected[0], abs=1e-12)
        assert found.insertion[number] == pytest.approx(expected[1], abs=1e-12)


def test_the_map_that_marks_what_counts_is_better_than_any_other(images, exact):
    model = OnePatch(1, 2)
    best, worst = (deletion_insertion(model, images, maps) for maps in (exact, -exact))
    assert (best.deletion < worst.deletion).all()
    assert (best.insertion > worst.insertion).all()
    elsewhere = deletion_insertion(model, images, exact.roll(2, dims=1))
    assert (best.deletion < elsewhere.deletion).all()
    assert (best.insertion > elsewhere.insertion).all()


def test_against_random_it_is_scipys_test_of_pairs(images, exact):
    model = OnePatch(1, 2)
    found = against_random(model, images, exact, seed=3)
    random = torch.rand(exact.shape, generator=torch.Generator().manual_seed(3))
    ours, theirs = (deletion_insertion(model, images, maps) for maps in (exact, random))
    for name, better in (("deletion", "less"), ("insertion", "greater")):
        pair = getattr(ours, name), getattr(theirs, name)
        assert (found[name].maps, found[name].random) == pytest.approx([each.mean() for each in pair])
        assert found[name].p == pytest.approx(wilcoxon(*pair, alternative=better).pvalue)
        assert found[name].p < 1e-6
    assert against_random(model, images, exact, seed=3) == found


def test_maps_that_are_random_themselves_are_no_better(images):
    maps = torch.rand(len(images), PATCHES, PATCHES)
    assert all(score.p > 0.01 for score in against_random(OnePatch(1, 2), images, maps).values())
    random = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    assert all(score.p == 1 for score in against_random(OnePatch(1, 2), images, random).values())


def test_what_cannot_be_scored_is_refused(images, exact, untyped):
    model = OnePatch(1, 2)
    with pytest.raises(ConfigError, match="steps=0, 40 maps of 40 images; expected at least 1 step"):
        deletion_insertion(model, images, exact, steps=0)
    with pytest.raises(ConfigError, match="a map for each image"):
        deletion_insertion(model, images[:2], exact)
    exact[0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="a map that is not finite"):
        deletion_insertion(model, images, exact)
    with pytest.raises(DataError, match="1 image; expected at least two"):
        against_random(model, images[:1], exact[:1])
