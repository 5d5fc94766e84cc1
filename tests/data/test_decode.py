import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from promptvit.data.decode import decode, fit, quiet_pillow, tf1_bilinear, to_rgb
from promptvit.errors import BrokenImageError
from promptvit.preprocessing import Preprocessing

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def array(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_is_repeated(tmp_path):
    rgb = array(decode(saved(tmp_path / "a.png", Image.fromarray(RAMP))))
    assert np.array_equal(rgb, np.repeat(RAMP[:, :, None], 3, axis=2))


def test_black_and_white(tmp_path):
    image = Image.fromarray(RAMP).point(lambda value: 255 * (value > 127), mode="1")
    assert set(array(decode(saved(tmp_path / "a.png", image))).ravel()) == {0, 255}


def test_a_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert array(decode(saved(tmp_path / "a.png", image))).tolist() == [[[10, 20, 30], [200, 100, 0]]]


def test_transparent_palette_entries_are_white(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 0])
    for x in range(3):
        image.putpixel((x, 0), x)
    path = saved(tmp_path / "a.png", image, transparency=bytes([255, 0, 128]))
    first, second, third = array(decode(path))[0].tolist()
    assert (first, second) == ([10, 20, 30], [255, 255, 255])
    assert third == [127, 127, 127]


@pytest.mark.parametrize(("mode", "colour"), [("LA", (0, 0)), ("RGBA", (0, 0, 0, 0)), ("PA", (0, 0))])
def test_transparent_pixels_are_white(mode, colour):
    assert array(to_rgb(Image.new(mode, (1, 1), colour))).tolist() == [[[255] * 3]]


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    path = saved(tmp_path / "a.webp", Image.new("RGBA", (1, 1), (200, 0, 0, 51)), lossless=True)
    assert array(decode(path)).tolist() == [[[244, 204, 204]]]


def test_a_transparent_colour_of_rgb_is_white(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("RGB", (1, 1), (9, 9, 9)), transparency=(9, 9, 9))
    assert array(decode(path)).tolist() == [[[255] * 3]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_a_16_bit_ramp_is_scaled_and_not_clipped(tmp_path, name):
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert image.mode == "I;16"
    assert np.array_equal(array(decode(saved(tmp_path / name, image)))[:, :, 0], RAMP)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.int32), RAMP),
        (RAMP.astype(np.int32) * 257, RAMP),
        (RAMP.astype(np.int32) * 2**20, RAMP),
        (RAMP.astype(np.float32) / 255, RAMP),
        (RAMP.astype(np.float32), RAMP),
        (np.full((2, 2), -3, dtype=np.int32), np.zeros((2, 2))),
        (np.full((2, 2), np.nan, dtype=np.float32), np.zeros((2, 2))),
    ],
)
def test_32_bit_grey_is_scaled_by_its_range(tmp_path, values, expected):
    decoded = decode(saved(tmp_path / "a.tif", Image.fromarray(values)))
    assert np.array_equal(array(decoded)[:, :, 0], expected)


def test_a_cmyk_jpeg_keeps_its_colour(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    red, green, blue = array(decode(path))[4, 4].tolist()
    assert red > 240
    assert max(green, blue) < 15


def test_exif_orientation_turns_the_picture(tmp_path):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise: left becomes top
    upright = array(decode(saved(tmp_path / "a.jpg", image, exif=exif, quality=95)))
    assert upright.shape == (16, 8, 3)
    assert upright[:6].max() < 60
    assert upright[10:].min() > 195


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert array(decode(path))[0, 0].tolist() == [255, 0, 0]


def test_damaged_exif_neither_stops_nor_warns(tmp_path):
    cut = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01"
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (4, 4), "red"), exif=cut)
    assert decode(path).size == (4, 4)


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "bmp", "webp", "gif"])
def test_a_truncated_file_is_broken(tmp_path, extension):
    path = saved(tmp_path / f"a.{extension}", noise())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenImageError, match=f"a.{extension} cannot be decoded: ") as caught:
        decode(path)
    assert caught.value.path == path
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


def test_other_files_are_broken_and_say_why(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    for name, reason in {
        "a.jpg": "unknown format",
        "empty.png": "unknown format",
        "gone": "no such file",
    }.items():
        with pytest.raises(BrokenImageError, match=reason):
            decode(tmp_path / name)
    with pytest.raises(BrokenImageError, match="an image stream cannot"):
        decode(io.BytesIO(b"hello"))


def test_a_stream_is_decoded_too(tmp_path):
    path = saved(tmp_path / "a.png", noise())
    assert np.array_equal(array(decode(io.BytesIO(path.read_bytes()))), array(decode(path)))


def test_a_decompression_bomb_is_broken_and_a_large_picture_is_quiet(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert decode(path).size == (64, 64)  # Pillow warns here
    assert not shown
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(BrokenImageError, match="decompression bomb"):
        decode(path)


def test_only_pillow_is_quietened_and_only_inside():
    before = list(warnings.filters)
    with quiet_pillow(), pytest.warns(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)
    assert warnings.filters == before


@pytest.mark.parametrize("size", [(10, 30), (30, 10), (31, 31), (1, 50), (20, 17)])
@pytest.mark.parametrize("geometry", ["squash", "crop"])
def test_fit_gives_the_stored_size(size, geometry):
    preprocessing = Preprocessing(size=(14, 21), geometry=geometry)
    pixels = fit(Image.new("RGB", size, (1, 2, 3)), preprocessing)
    assert pixels.shape == (3, *preprocessing.stored_size)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert pixels.flatten(1).unique(dim=1).T.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(50, 37), (37, 50), (20, 90)])
def test_cropping_equals_resizing_all_and_taking_the_centre(interpolation, size):
    preprocessing = Preprocessing(size=(14, 14), geometry="crop", interpolation=interpolation)
    image = noise().resize(size)
    short = min(size)
    whole = image.resize(tuple(16 * side // short for side in size), Image.Resampling[interpolation.upper()])
    left, top = round((whole.width - 16) / 2), round((whole.height - 16) / 2)
    expected = np.asarray(whole.crop((left, top, left + 16, top + 16)), dtype=int)
    assert abs(fit(image, preprocessing).permute(1, 2, 0).numpy() - expected).max() <= 1


def test_squash_uses_the_whole_picture_and_the_chosen_filter():
    image = noise()
    squashed = {
        name: fit(image, Preprocessing(size=(9, 5), interpolation=name))
        for name in ("nearest", "bilinear", "bicubic", "lanczos")
    }
    for name, pixels in squashed.items():
        expected = np.asarray(image.resize((5, 9), Image.Resampling[name.upper()]))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    assert len({pixels.numpy().tobytes() for pixels in squashed.values()}) == 4


def grey(rows):
    return np.repeat(np.array(rows, dtype=np.uint8)[:, :, None], 3, axis=2)


def test_tensorflow_1_resizes_without_a_shift_and_repeats_the_last_pixel():
    row = tf1_bilinear(grey([[0, 1, 2, 3]]), (0.0, 0.0, 4.0, 1.0), 1, 8)
    assert row[0, :, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    column = tf1_bilinear(grey([[0], [1], [2], [3]]), (0.0, 0.0, 1.0, 4.0), 8, 1)
    assert column[:, 0, 0].tolist() == row[0, :, 0].tolist()


def test_tensorflow_1_resizes_without_antialiasing():
    assert tf1_bilinear(grey([[0, 255] * 4]), (0.0, 0.0, 8.0, 1.0), 1, 4)[0, :, 0].tolist() == [0] * 4
    pixels = np.asarray(noise())
    assert np.array_equal(tf1_bilinear(pixels, (0.0, 0.0, 64.0, 64.0), 64, 64), pixels)


def plain_tf1(pixels, height, width):
    """Pixel by pixel, in float64."""
    result = np.empty((height, width, 3))
    for i in range(height):
        for j in range(width):
            y, x = i * pixels.shape[0] / height, j * pixels.shape[1] / width
            top, left = int(y), int(x)
            bottom, right = min(top + 1, pixels.shape[0] - 1), min(left + 1, pixels.shape[1] - 1)
            above = pixels[top, left] + (x - left) * (pixels[top, right] - pixels[top, left])
            below = pixels[bottom, left] + (x - left) * (pixels[bottom, right] - pixels[bottom, left])
            result[i, j] = above + (y - top) * (below - above)
    return result


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (9, 4)])
def test_fit_as_tensorflow_1_does_is_rounded_and_crops_what_is_left(size):
    image = noise().resize(size)
    squash = Preprocessing(size=(14, 21), interpolation="tf1-bilinear")
    expected = plain_tf1(np.asarray(image, dtype=float), 14, 21)
    assert abs(fit(image, squash).permute(1, 2, 0).numpy() - expected).max() <= 0.5 + 1e-4
    crop = Preprocessing(size=(14, 14), geometry="crop", interpolation="tf1-bilinear")
    short = min(size)
    width, height = (16 * side // short for side in size)
    left, top = round((width - 16) / 2), round((height - 16) / 2)
    whole = plain_tf1(np.asarray(image, dtype=float), height, width)
    difference = fit(image, crop).permute(1, 2, 0).numpy() - whole[top : top + 16, left : left + 16]
    assert abs(difference).max() <= 0.5 + 1e-4
