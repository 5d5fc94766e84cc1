import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from promptvit.data.dataset import ImageDataset
from promptvit.data.task import Split
from promptvit.data.transforms import augment, normalise, prepare
from promptvit.errors import BrokenImageError, DataError, UnknownNameError
from promptvit.preprocessing import Preprocessing

SQUASH = Preprocessing(size=(16, 24), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
CROP = Preprocessing(size=(14, 21), geometry="crop")  # stored as 16 x 24
KINDS = ["none", "flip", "crop", "crop+flip", "resized-crop+flip"]


def batch(count=5, size=(16, 24)):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def test_normalise_is_centre_then_mean_and_std():
    images = batch()
    mean, std = torch.tensor(SQUASH.mean), torch.tensor(SQUASH.std)
    expected = ((images.permute(0, 2, 3, 1).double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert normalise(images, SQUASH).dtype == torch.float32
    torch.testing.assert_close(normalise(images, SQUASH), expected.float())
    centre = images[:, :, 1:15, 2:23]
    torch.testing.assert_close(normalise(images, CROP), centre / 127.5 - 1)
    torch.testing.assert_close(normalise(centre, CROP), centre / 127.5 - 1)


@pytest.mark.parametrize("preprocessing", [SQUASH, CROP])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_normalise_nor_augment_touches_its_input_or_the_cache(kind, preprocessing):
    split = Split(images=batch().permute(0, 2, 3, 1).numpy(), labels=np.zeros(5, dtype=np.int64))
    dataset = ImageDataset(split, preprocessing)
    images, _ = dataset.__getitems__(range(5))
    before = images.clone()
    augmented = augment(images, kind, preprocessing, chance())
    normalise(images, preprocessing).zero_()
    normalise(augmented, preprocessing).zero_()
    augmented.zero_()
    assert torch.equal(images, before)
    assert torch.equal(dataset.__getitems__(range(5))[0], before)


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_depends_on_the_generator_alone(kind):
    images = batch(32)
    first = augment(images, kind, SQUASH, chance(1))
    torch.rand(3)
    assert torch.equal(augment(images, kind, SQUASH, chance(1)), first)
    assert torch.equal(augment(images, kind, SQUASH, chance(2)), first) == (kind == "none")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 4), st.sampled_from(KINDS), st.booleans())
def test_augment_gives_the_input_size_and_only_pixels_of_the_same_image(height, width, count, kind, crop):
    preprocessing = Preprocessing(size=(height, width), geometry="crop" if crop else "squash")
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, *preprocessing.stored_size)
    result = augment(images, kind, preprocessing, chance())
    assert result.dtype == torch.uint8
    assert result.shape == (count, 3, height, width)
    assert torch.equal(result, images[:, :, :height, :width])


def test_flip_mirrors_about_half_of_the_images():
    images = batch(200)
    flipped = augment(images, "flip", SQUASH, chance())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert torch.equal(torch.where(mirrored[:, None, None, None], flipped.flip(3), flipped), images)
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("preprocessing", [SQUASH, CROP])
def test_crop_takes_a_window_of_the_reflected_or_stored_picture(preprocessing):
    images = batch(1).repeat(60, 1, 1, 1)
    height, width = preprocessing.size
    whole = images[:1]
    if preprocessing is SQUASH:
        whole = functional.pad(whole.float(), (3, 3, 2, 2), mode="reflect").to(torch.uint8)
    windows = whole.unfold(2, height, 1).unfold(3, width, 1)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)
    cropped = augment(images, "crop", preprocessing, chance())
    matches = (cropped[:, None] == windows).flatten(2).all(2)  # [B, windows]
    assert matches.any(1).all()
    assert matches.any(0).sum() > windows.shape[0] / 2  # all places occur, not only a few


def test_a_resized_crop_is_a_part_of_the_picture_at_the_input_size():
    """On a ramp a part is known by its first and last values; Pillow resizes it alike."""
    preprocessing = Preprocessing(size=(64, 64))
    rows, columns = torch.meshgrid(torch.arange(64) * 4, torch.arange(64) * 4, indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    views = augment(image.expand(300, -1, -1, -1), "resized-crop+flip", preprocessing, chance())
    heights, widths = [], []
    for view in views:
        top, bottom = view[0, :, 0][[0, -1]].tolist()
        left, right = sorted(view[1, 0][[0, -1]].tolist())
        y, x = round(top / 4), round(left / 4)
        tall, wide = round(bottom / 4) - y + 1, round(right / 4) - x + 1
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        part = picture.crop((x, y, x + wide, y + tall)).resize((64, 64), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.array(part)).permute(2, 0, 1).int()
        mirrored = view[1, 0, 0] > view[1, 0, -1]
        assert (expected - (view.flip(2) if mirrored else view).int()).abs().max() <= 1
        heights.append(tall)
        widths.append(wide)
    areas, aspects = torch.tensor(heights) * torch.tensor(widths) / 64**2, torch.tensor(widths) / torch.tensor(heights)
    assert 0.07 < areas.min() < 0.15
    assert 0.9 < areas.max() <= 1
    assert 0.7 < aspects.min() < 0.8
    assert 1.25 < aspects.max() < 1.4


def test_a_picture_that_holds_no_such_part_is_taken_whole():
    images = torch.arange(40, dtype=torch.uint8).expand(20, 3, 1, 40)
    views = augment(images, "resized-crop+flip", Preprocessing(size=(1, 40)), chance())
    assert any(torch.equal(view, images[0]) for view in views)


@pytest.mark.parametrize("images", [batch(size=(24, 16)), batch().float(), batch()[0], batch()[:, :1]])
@pytest.mark.usefixtures("untyped")
def test_pixels_of_another_shape_or_type_are_refused(images):
    with pytest.raises(DataError, match=r"expected torch.uint8 \[B, 3, 16, 24\]"):
        normalise(images, SQUASH)
    with pytest.raises(DataError, match=r"expected torch.uint8"):
        augment(images, "crop", SQUASH, chance())


@pytest.mark.usefixtures("untyped")
def test_an_unknown_augmentation_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean flip"):
        augment(batch(), "flop", SQUASH, chance())


def test_prepare_takes_files_pictures_and_arrays_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    given = [path, str(path), Image.open(path), Image.fromarray(pixels), pixels]
    prepared = [prepare(image, CROP) for image in given]
    assert prepared[0].shape == (3, 16, 24)
    assert all(torch.equal(image, prepared[0]) for image in prepared)
    assert normalise(prepared[0][None], CROP).shape == (1, 3, 14, 21)


def test_prepare_refuses_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"hello")
    with pytest.raises(BrokenImageError):
        prepare(tmp_path / "a.png", SQUASH)
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(DataError, match="an image array of"):
            prepare(array, SQUASH)
