import sys

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances

import promptvit as pv
from promptvit.analysis.embedding import centred, embed, separation, task_features, to_disk
from promptvit.data.config import DataConfig
from promptvit.data.digits import read_digits
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import ConfigError, DataError
from promptvit.preprocessing import Preprocessing

DIGITS = DataConfig()
LABELS = np.repeat([0, 1], 10)


@pytest.fixture
def clusters():
    """Twenty rows in two groups, the second ten like one another."""
    generator = np.random.default_rng(0)
    middles = np.repeat(np.eye(2, 6), 10, axis=0)
    return middles + 0.1 * generator.normal(size=(20, 6))


@pytest.fixture
def make_model(make_vit):
    """A tuned model of a small ViT, with the values that are trained moved, and its backbone."""

    def make(method):
        backbone = pv.from_timm(make_vit().float(), preprocessing=Preprocessing(size=(16, 16)))
        model = pv.tune(backbone, method, 10)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model, backbone

    return make


def read_literally(function, numbers, preprocessing):
    """Features of single validation images, one after the other."""
    pixels = [prepare(read_digits().val.images[number], preprocessing)[None] for number in numbers]
    with torch.no_grad():
        return torch.cat([function(normalise(each, preprocessing)) for each in pixels]).double().numpy()


@pytest.mark.parametrize(
    "method",
    [pv.Linear(), pv.VPT(length=3), pv.VPT(length=3, depth="shallow"), pv.Full(), pv.Bias(), pv.Adapter()],
    ids=lambda method: method.kind,
)
def test_before_is_the_pretrained_backbone_and_after_the_tuned_model(method, make_model):
    model, backbone = make_model(method)
    found = task_features(model, backbone, DIGITS, images=12)
    numbers = sorted(np.random.default_rng(0).permutation(len(read_digits().val))[:12])
    assert found.labels.tolist() == read_digits().val.labels[numbers].tolist()
    assert found.classes == read_digits().classes
    alone = make_model(pv.Linear())[1]  # the same weights, and nothing that was trained
    np.testing.assert_allclose(found.before, read_literally(alone, numbers, model.preprocessing), atol=1e-5)
    np.testing.assert_allclose(
        found.after, read_literally(model.eval().features, numbers, model.preprocessing), atol=1e-5
    )
    if method.kind == "linear":
        assert np.array_equal(found.before, found.after)
    else:
        assert np.abs(found.before - found.after).max() > 1e-2


@pytest.mark.parametrize(("pooling", "expected"), [("image", "image"), ("all", "image"), ("prompt", "own")])
def test_before_is_read_as_the_method_reads(pooling, expected, make_model):
    model, backbone = make_model(pv.VPT(length=3, depth="shallow", pooling=pooling))
    found = task_features(model, backbone, DIGITS, images=6)
    numbers = sorted(np.random.default_rng(0).permutation(len(read_digits().val))[:6])
    literal = read_literally(lambda images: backbone(images, (), expected), numbers, model.preprocessing)
    np.testing.assert_allclose(found.before, literal, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_alone(training, make_model):
    model, backbone = make_model(pv.VPT(length=3, dropout=0.5))
    model.train(training)
    first, second = (task_features(model, backbone, DIGITS, images=6) for _ in range(2))
    assert np.array_equal(first.after, second.after)
    assert model.training is training


def test_what_cannot_be_read_is_refused(make_model):
    model, backbone = make_model(pv.Full())
    with pytest.raises(ConfigError, match="the backbone of a tuned model; expected the pretrained one"):
        task_features(model, model.backbone, DIGITS)
    with pytest.raises(ConfigError, match="images=0; expected at least 1"):
        task_features(model, backbone, DIGITS, images=0)
    with torch.no_grad():
        next(model.backbone.model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"features of 6 of 6 images are not finite.*in after tuning"):
        task_features(model, backbone, DIGITS, images=6)


def test_separation_is_the_silhouette_score(clusters):
    distances, each = cosine_distances(clusters), []
    for row, label in enumerate(LABELS):
        own = distances[row, (label == LABELS) & (np.arange(20) != row)].mean()
        other = distances[row, label != LABELS].mean()
        each.append((other - own) / max(own, other))
    assert separation(clusters, LABELS) == pytest.approx(np.mean(each))
    assert separation(clusters, LABELS) > 0.9 > 0.1 > separation(clusters, np.arange(20) % 2)


@pytest.mark.parametrize("labels", [np.zeros(20, dtype=np.int64), np.arange(20)], ids=["one class", "no two of one"])
def test_separation_needs_two_classes_and_two_of_one(labels, clusters):
    assert separation(clusters, labels) is None


def hyperboloid(points):
    return np.concatenate([points, np.sqrt(1 + (points**2).sum(axis=1, keepdims=True))], axis=1)


def hyperbolic_distances(points):
    space = hyperboloid(points)
    return np.arccosh(np.maximum(1, -(space * [1, 1, -1]) @ space.T))


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(30, 2)) * 5 + 8


def test_the_disk_is_the_view_from_below_the_hyperboloid(points):
    for (x, y, z), seen in zip(hyperboloid(points), to_disk(points), strict=True):
        share = 1 / (z + 1)  # where the line from (0, 0, -1) to (x, y, z) meets the plane z = 0
        np.testing.assert_allclose(seen, [share * x, share * y], rtol=1e-12)
    a, b = to_disk(points)[:2]
    inside = 2 * ((a - b) @ (a - b)) / ((1 - a @ a) * (1 - b @ b))
    assert np.arccosh(1 + inside) == pytest.approx(hyperbolic_distances(points)[0, 1])


def test_points_far_away_are_inside_the_disk():
    far = to_disk(np.array([[1e6, 0], [0, -1e7], [0, 0]]))
    assert (np.hypot(*far.T) < 1).all()
    assert far[2].tolist() == [0, 0]


def test_centring_keeps_distances_and_puts_the_centroid_in_the_middle(points):
    moved = centred(points)
    np.testing.assert_allclose(hyperboloid(moved).mean(axis=0)[:2], 0, atol=1e-9)
    np.testing.assert_allclose(hyperbolic_distances(moved), hyperbolic_distances(points), atol=1e-5)
    np.testing.assert_allclose(centred(moved), moved, atol=1e-9)


def check_points(clusters, kind):
    placed = embed(clusters, kind)
    assert placed.shape == (20, 2)
    assert np.isfinite(placed).all()
    middles = [placed[label == LABELS].mean(axis=0) for label in (0, 1)]
    nearest = np.linalg.norm(placed[:, None] - middles, axis=-1).argmin(axis=1)
    assert nearest.tolist() == LABELS.tolist()  # a point stays with its row
    assert np.array_equal(placed, embed(clusters, kind))
    return placed


def test_tsne_keeps_groups_apart(clusters):
    check_points(clusters, "tsne")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["umap", "poincare"])
def test_umap_keeps_groups_apart_and_follows_its_seed(kind, clusters):
    placed = check_points(clusters, kind)
    assert not np.array_equal(placed, embed(clusters, kind, seed=1))
    if kind == "poincare":
        assert (np.hypot(*placed.T) < 1).all()
    assert np.isfinite(embed(clusters[8:13], kind)).all()
    assert torch.get_num_threads() == 1  # as conftest.py sets it: numba would leave all


@pytest.mark.slow
def test_groups_at_opposite_ends_are_still_drawn(clusters):
    assert np.isfinite(embed(np.concatenate([clusters, -clusters]), "umap")).all()


@pytest.mark.parametrize("count", [5, 7])
def test_few_images_are_enough_for_tsne(count, clusters):
    assert np.isfinite(embed(clusters[:count], "tsne")).all()


def test_what_cannot_be_drawn_is_refused(clusters):
    with pytest.raises(DataError, match="4 images; expected at least 5"):
        embed(clusters[:4])
    with pytest.raises(DataError, match="all images have the same features"):
        embed(np.ones((9, 3)))
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=rf"seed={seed}; expected 0 to 2\*\*32 - 1"):
            embed(clusters, seed=seed)


def test_without_umap_the_error_says_what_to_install(clusters, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    for kind in ("umap", "poincare"):
        with pytest.raises(ConfigError, match=r"pip install 'promptvit\[analysis\]'"):
            embed(clusters, kind)
    assert embed(clusters, "tsne").shape == (20, 2)


@pytest.mark.slow
def test_importing_umap_hides_no_warning_of_others(run_python):
    program = """
import warnings
warnings.simplefilter("error")
from promptvit.analysis.embedding import require_umap
require_umap()
try:
    warnings.warn("other", ImportWarning)
except ImportWarning as warning:
    print(warning)
"""
    assert run_python(program) == "other"
