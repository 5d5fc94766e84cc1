import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from scripts import pretraining_stats as script

import promptvit as pv
from promptvit.analysis.extractor import Extractor, feature_stats, task_stats
from promptvit.analysis.feature_stats import BUNDLED, FeatureSpace, FeatureStats, pretraining_stats
from promptvit.analysis.shift import shift
from promptvit.data.config import DataConfig
from promptvit.data.dataset import ImageDataset
from promptvit.data.digits import read_digits
from promptvit.data.task import Split
from promptvit.data.transforms import normalise, prepare
from promptvit.errors import ConfigError, DataError
from promptvit.preprocessing import Preprocessing

SHARED = Path(os.environ.get("PROMPTVIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
SPACE = FeatureSpace(extractor="a", fingerprint="12", preprocessing=Preprocessing(size=(16, 8), geometry="crop"))


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


@pytest.fixture
def stats(features):
    return FeatureStats.of(features, name="täsk", space=SPACE, rows=40)


@pytest.fixture
def extractor(make_vit):
    return Extractor.of(pv.from_timm(make_vit().float(), preprocessing=Preprocessing(size=(16, 16))))


def test_they_are_mean_covariance_and_some_rows(features, stats):
    np.testing.assert_allclose(stats.mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.covariance, np.cov(features.astype(np.float64).T), rtol=1e-12)
    assert (stats.count, stats.distinct, stats.width) == (50, 50, 6)
    places = [np.flatnonzero((features == row).all(axis=1)).item() for row in stats.rows]
    assert len(set(places)) == 40
    assert places != sorted(places)
    again = FeatureStats.of(features, rows=40)
    assert np.array_equal(again.rows, stats.rows)
    assert not np.array_equal(FeatureStats.of(features, rows=40, seed=1).rows, stats.rows)


def test_a_sample_is_of_its_rows_alone(stats):
    part = stats.sample(15, skip=20)
    assert np.array_equal(part.rows, stats.rows[20:35])
    assert (part.count, part.distinct, part.space, part.name) == (15, 15, SPACE, "täsk")
    np.testing.assert_allclose(part.covariance, np.cov(stats.rows[20:35].astype(np.float64).T), rtol=1e-6)
    for n, skip, needed in ((41, 0, 41), (20, 21, 41), (1, 0, 2)):
        with pytest.raises(DataError, match=rf"40 feature rows of täsk; expected at least {needed}"):
            stats.sample(n, skip)


def test_copies_are_counted(features):
    assert FeatureStats.of(np.concatenate([features, features[:7]])).distinct == 50
    with pytest.raises(DataError, match=r"1 image; expected at least 2 for a covariance"):
        FeatureStats.of(features[:1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("space", [SPACE, FeatureSpace()])
def test_a_file_gives_back_every_bit(dtype, space, stats, tmp_path):
    stats = dataclasses.replace(stats, rows=stats.rows.astype(dtype), space=space)
    path = stats.save(tmp_path / "new" / "a.safetensors")
    assert [each.name for each in path.parent.iterdir()] == ["a.safetensors"]
    again = FeatureStats.read(path)
    for field in dataclasses.fields(stats):
        one, two = getattr(stats, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == two.dtype
            assert np.array_equal(one, two)
        else:
            assert one == two


def test_what_is_no_such_file_is_refused(stats, tmp_path, untyped):
    path = tmp_path / "a.safetensors"
    with pytest.raises(DataError, match=r"does not exist; expected statistics of images.*promptvit data stats DATA"):
        FeatureStats.read(path)
    content = stats.save(path).read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"cannot be read.*Copy it or make it again"):
        FeatureStats.read(path)
    tensors = safetensors.numpy.load(content)
    path.write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(DataError, match=r"a\.safetensors cannot be read"):
        FeatureStats.read(path)
    size = int.from_bytes(content[:8], "little")
    about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["feature_stats"])

    def rewritten(changed_tensors=(), **changed):
        about_now = {"feature_stats": json.dumps({**about, **changed})}
        path.write_bytes(safetensors.numpy.save({**tensors, **dict(changed_tensors)}, about_now))
        return FeatureStats.read(path)

    assert rewritten().count == 50
    with pytest.raises(DataError, match=r"has format 2; expected at most 1.*Update promptvit"):
        rewritten(format=2)
    for changed in ({"count": 30}, {"distinct": 51}, {"distinct": 0}):
        with pytest.raises(DataError, match=r"rows \[40, 6\] of .* distinct; expected \[d\], \[d, d\] and \[m, d\]"):
            rewritten(**changed)
    with pytest.raises(DataError, match=r"rows \[40, 5\]"):
        rewritten({"rows": np.ascontiguousarray(tensors["rows"][:, :5])})
    with pytest.raises(DataError, match="features that are not finite"):
        rewritten({"mean": np.full(6, np.nan)})
    with pytest.raises(DataError, match="cannot be read"):
        rewritten(space={"extractor": "a", "fingerprint": "12", "preprocessing": {"size": [0, 0]}})


def test_features_are_those_of_the_backbone_alone(extractor):
    found = task_stats(extractor, DataConfig(), "val", images=30)
    split = read_digits().val
    numbers = np.sort(np.random.default_rng(0).permutation(len(split))[:30])
    pixels = torch.stack([prepare(split.images[number], extractor.preprocessing) for number in numbers])
    literal = extractor_backbone_features(extractor, pixels)
    np.testing.assert_allclose(found.mean, literal.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(literal.T), atol=1e-6)
    assert (found.name, found.count, found.rows.dtype) == ("digits val", 30, np.float32)
    assert found.space == extractor.space
    assert found.space.preprocessing == Preprocessing(size=(16, 16))
    assert len(found.space.fingerprint) == 64
    assert task_stats(extractor, DataConfig(), "val", images=10**6).count == len(split)


def extractor_backbone_features(extractor, pixels):
    with torch.no_grad():
        return torch.cat([extractor.read(each[None]) for each in pixels]).double().numpy()


def test_an_extractor_reads_as_the_backbone_does(make_vit):
    backbone = pv.from_timm(make_vit().float(), preprocessing=Preprocessing(size=(16, 16)))
    extractor = Extractor.of(backbone)
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(extractor.read(pixels), backbone(normalise(pixels, backbone.preprocessing)))
    assert extractor.space.extractor == "VisionTransformer"
    assert extractor.space.fingerprint == backbone.fingerprint
    with pytest.raises(ConfigError, match="the backbone of a tuned model; expected the pretrained one"):
        Extractor.of(backbone.own())


def test_copies_are_told_by_their_pixels(extractor):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    images[70:] = images[:10]  # in the second batch, so that sums may be in another order
    split = Split(images=images, labels=np.arange(80) % 2)
    told = []
    found = feature_stats(
        extractor,
        ImageDataset(split, extractor.preprocessing),
        name="some",
        progress=lambda *done: told.append(done),
    )
    assert (found.count, found.distinct) == (80, 70)
    assert told == [("features", 64, 80), ("features", 80, 80)]


def test_bad_tasks_are_refused(extractor, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((8, 8, 3), 40 * i + (name == "b"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "two" / name / f"{i}.png")
    data = DataConfig(source=str(tmp_path / "two"))
    assert task_stats(extractor, data).count + task_stats(extractor, data, "val").count == 8
    with pytest.raises(DataError, match=r"the task two has no test images; expected train or val"):
        task_stats(extractor, data, "test")
    with pytest.raises(ConfigError, match="images=1; expected at least 2"):
        task_stats(extractor, data, images=1)
    stats = task_stats(extractor, data)
    reference = FeatureStats.of(np.random.default_rng(0).normal(size=(2000, 24)), space=extractor.space)
    with pytest.raises(DataError, match=r"6 task images and 2000 of the reference; expected at least 20 and 40"):
        shift(stats, reference)
    for path in (tmp_path / "two" / "b").iterdir():
        path.unlink()
    (tmp_path / "two" / "b").rmdir()
    with pytest.raises(DataError, match=r"1 class"):
        task_stats(extractor, data)


# --- what is shipped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_statistics_belong_to_the_bundled_backbone(name):
    found = pretraining_stats(name)
    found.space.check(Extractor.of(pv.load_backbone(name)).space)
    assert (found.name, found.space.extractor, found.count) == ("CIFAR-100 train", name, 10_000)
    assert (found.rows.shape, found.rows.dtype, found.distinct) == ((2000, 128), np.float16, found.distinct)
    assert found.distinct > 9900
    assert (script.ASSETS / f"{name}.stats.safetensors").stat().st_size < 10**6
    of_rows = found.sample(2000)
    assert np.abs(of_rows.mean - found.mean).max() < 5 * np.sqrt(found.covariance.diagonal().max() / 2000)
    assert of_rows.gaussian.trace == pytest.approx(found.gaussian.trace, rel=0.05)
    with pytest.raises(DataError, match=f"features of '{name}'"):
        found.space.check(Extractor.of(pv.load_backbone(name, image_size=16)).space)


def test_other_backbones_have_none():
    with pytest.raises(
        DataError,
        match=r"images that 'resnet50' was pretrained on; expected one of vit_pico, .*stats FOLDER --backbone resnet50",
    ):
        pretraining_stats("resnet50")


def test_the_script_draws_as_many_of_each_class():
    labels = torch.tensor([0, 1, 2] * 20 + [3])
    pixels = torch.arange(61, dtype=torch.uint8)[:, None, None, None].expand(61, 3, 32, 32)
    split = script.balanced(script.Images(pixels=pixels, labels=labels), 5)
    assert np.bincount(split.labels).tolist() == [5, 5, 5, 1]
    places = split.images[:, 0, 0, 0]
    assert len(set(places.tolist())) == 16
    assert (labels.numpy()[places] == split.labels).all()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "pretrain_cifar100.npz").is_file(), reason="no pretraining images; PROMPTVIT_DATA")
def test_other_images_of_the_pretraining_set_are_near_and_digits_are_far():
    extractor = Extractor.of(pv.load_backbone("vit_pico"))
    held = script.balanced(script.read(SHARED / "pretrain_cifar100.npz", "test"), 2)
    near = feature_stats(extractor, ImageDataset(held, extractor.preprocessing), name="CIFAR-100 test")
    far = task_stats(extractor, DataConfig(), images=200)
    near, far = (shift(each, pretraining_stats("vit_pico")) for each in (near, far))
    assert near.n == far.n == 200
    assert near.excess.high < 0.2 < far.excess.low
    assert near.kernel.high < far.kernel.low
