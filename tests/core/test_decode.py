"""Decoding: every odd mode by hand, every damage with its reason, nothing else ever raised."""

import io
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from planted_files import encoded, mangled, oriented, picture, png_header

from beholder.core.decode import REASONS, Facts, Unreadable, decode, resize
from beholder.core.images import read_bytes
from beholder.data.sources import open_images

NOISE = picture()
PNG, JPEG = encoded(NOISE, "PNG"), encoded(NOISE, "JPEG", quality=95)


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(Unreadable) as caught:
        decode(data, **options)
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_a_colour_png_is_read_without_loss_and_can_be_written_to():
    pixels, facts = decode(PNG)
    assert (pixels == NOISE).all()
    assert pixels.flags.writeable
    assert facts == Facts(width=32, height=32, mode="RGB", format="PNG")


def test_a_grey_image_gets_three_equal_channels():
    pixels, facts = decode(encoded(NOISE[:, :, 0], "PNG"))
    assert (pixels == NOISE[:, :, :1]).all()
    assert pixels.shape == (32, 32, 3)
    assert facts.mode == "L"


def test_every_mangled_file_ends_as_expected(tmp_path):
    expected = mangled(tmp_path / "mangled")
    images = open_images(tmp_path / "mangled")
    found = dict(images.skipped.select("path", "reason").iter_rows())
    for path, key in images.table.select("path", "key").iter_rows():
        try:
            pixels, _ = decode(read_bytes(images.store, key))
            found[path] = "read"
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
        except Unreadable as error:
            found[path] = error.reason
    assert found == expected
    assert len(expected) >= 30


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_equals_pillows_own_transposition(orientation, format):
    data = oriented(picture()[:16], orientation, format)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels, facts = decode(data)
    assert (pixels == np.asarray(upright)).all()
    assert (facts.height, facts.width) == pixels.shape[:2]


def test_orientation_six_equals_the_rotated_original():
    pixels, _ = decode(oriented(NOISE[:16], 6, "PNG"))
    assert (pixels == np.rot90(NOISE[:16], -1)).all()


def test_alpha_is_put_on_white():
    layers = np.zeros((2, 2, 4), np.uint8)
    layers[..., 3] = [[0, 255], [128, 51]]
    pixels, facts = decode(encoded(layers, "PNG"))
    assert pixels[..., 0].tolist() == [[255, 0], [127, 204]]
    assert "transparency put on white" in facts.notes


def test_grey_with_alpha_is_put_on_white():
    layers = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), "LA")
    assert decode(encoded(layers, "PNG"))[0][0, :, 0].tolist() == [255, 10]


def test_a_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    pixels, facts = decode(encoded(image, "PNG", transparency=0))
    assert pixels.tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert facts.mode == "P"


def test_a_transparent_colour_of_a_grey_png_becomes_white():
    image = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert decode(encoded(image, "PNG", transparency=7))[0][0, :, 0].tolist() == [255, 9]


def test_one_bit_becomes_black_and_white():
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    pixels, facts = decode(encoded(image, "PNG"))
    assert pixels[0, :, 0].tolist() == [0, 255]
    assert facts.mode == "1"


def test_sixteen_bits_are_divided_by_257():
    values = np.array([[0, 257, 128 * 257 + 128, 128 * 257 + 129, 65535]], np.uint16)
    pixels, facts = decode(encoded(Image.fromarray(values), "PNG"))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 129, 255]
    assert facts.mode == "I;16"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([5.0, 5.0, 5.0], [0, 0, 0]),
        ([np.nan, 0.0, 100.0], [0, 0, 255]),
    ],
    ids=["unit range", "any range", "constant", "not a number"],
)
def test_floats_are_stretched_and_it_is_noted(values, wanted):
    pixels, facts = decode(encoded(np.array([values], np.float32), "TIFF"))
    assert pixels[0, :, 0].tolist() == wanted
    assert "stretched to 0 to 255" in facts.notes[0]


def test_wide_integers_within_16_bits_are_divided_by_257():
    pixels, _ = decode(encoded(np.array([[0, 257, 65535]], np.int32), "TIFF"))
    assert pixels[0, :, 0].tolist() == [0, 1, 255]


def test_cmyk_is_converted():
    image = Image.new("CMYK", (2, 1), (0, 255, 255, 0))
    pixels, facts = decode(encoded(image, "TIFF"))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert facts.mode == "CMYK"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_is_read_and_the_others_counted(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    more = {"save_all": True, "append_images": frames[1:], **options}
    pixels, facts = decode(encoded(frames[0], format, **more))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert facts.frames == 3


def test_size_is_checked_before_a_pixel_is_decoded():
    assert reason(png_header(50_000, 50_000)) == "too_large"
    assert reason(PNG, max_pixels=32 * 32 - 1) == "too_large"
    assert decode(PNG, max_pixels=32 * 32)[0].shape == (32, 32, 3)


def test_sizes_above_pillows_own_limit_are_read_where_allowed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(PNG)[0].shape == (32, 32, 3)


def test_no_global_setting_of_pillow_changes_and_no_warning_is_made():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert reason(png_header(10_000, 10_000), max_pixels=10**9) == "truncated"
        assert reason(png_header(50_000, 50_000)) == "too_large"
    assert seen == []
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_a_warning_that_is_an_error_changes_no_result():
    data = encoded(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = decode(data)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode(data)[0] == quiet).all()


def test_eps_is_not_handed_to_an_external_program():
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n") == "not_an_image"


def test_many_threads_read_the_same():
    found = []

    def work():
        found.extend((decode(data)[0] == decode(data)[0]).all() for data in [PNG, JPEG] * 20)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 * 40
    assert all(found)


DAMAGED = {
    "PNG": encoded(picture(12), "PNG"),
    "JPEG": encoded(picture(12), "JPEG"),
    "PNG with EXIF": oriented(picture(12), 6, "PNG"),
    "JPEG with EXIF": oriented(picture(12), 6),
    "GIF": encoded(picture(12), "GIF"),
    "WEBP": encoded(picture(12), "WEBP"),
}


@pytest.mark.parametrize("name", DAMAGED)
@settings(deadline=None, derandomize=True, max_examples=150)
@given(share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_gives_an_image_or_a_reason(name, share):
    whole = DAMAGED[name]
    arrives_or_is_refused(whole[: int(share * len(whole))])


@pytest.mark.parametrize("name", DAMAGED)
@settings(deadline=None, derandomize=True, max_examples=150)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1))
def test_any_flipped_bits_give_an_image_or_a_reason(name, flips):
    data = bytearray(DAMAGED[name])
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    arrives_or_is_refused(bytes(data))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_an_image_or_a_reason(data):
    arrives_or_is_refused(data)


def arrives_or_is_refused(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels, _ = decode(data, max_pixels=10**6)
        except Unreadable as error:
            known = error.reason in REASONS
        else:
            known = pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert known


def test_resize_squashes_as_pillow_does():
    wide = NOISE[:16]
    pillow = Image.fromarray(wide).resize((20, 20), Image.Resampling.BICUBIC)
    assert (resize(wide, 20) == np.asarray(pillow)).all()


def test_resize_takes_height_before_width():
    assert resize(NOISE, (10, 20)).shape == (10, 20, 3)


def test_center_crop_keeps_the_aspect_and_drops_the_sides():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    assert (resize(wide, 8, "center", "nearest") == 200).all()
    assert (resize(wide, 4, "center", "box") == 200).all()
    assert (resize(wide, 4, "squash", "box") == 200).mean() < 0.6


def test_resize_to_the_same_size_is_the_image_itself():
    assert resize(NOISE, 32) is NOISE


def test_reading_imports_no_torch():
    code = "import sys, beholder.core.decode, beholder.data.sources; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
