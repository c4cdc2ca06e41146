"""Planted defects change what their mask says; foreign images come in the form of the own files."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from beholder.core.errors import MissingExtraError
from beholder.core.scan import scan
from beholder.data.sources import open_images
from beholder.data.synthesize import foreign as foreign_module
from beholder.data.synthesize.defects import AREA, DEFECTS, box, cut_paste, plant
from beholder.data.synthesize.foreign import BENIGN, BROKEN, FileForm, foreign, some


@pytest.fixture
def textured() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 180, (50, 70, 3), np.uint8)


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("seed", range(5))
def test_a_defect_changes_the_image_where_its_mask_says_and_nowhere_else(textured, kind, seed):
    rng, before = np.random.default_rng(seed), textured.copy()
    image, mask = plant(kind, textured, rng, textured[::-1])
    assert image.dtype == np.uint8
    assert mask.any()
    assert (textured == before).all(), "the image itself stays"
    if kind != "tiles":  # a rest at the border goes
        assert image.shape == textured.shape
        changed = (image != textured).any(2)
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.5


@pytest.mark.parametrize("seed", range(20))
def test_a_local_defect_covers_2_to_10_per_cent(seed):
    rows, columns = box((200, 300), np.random.default_rng(seed))
    area = (rows.stop - rows.start) * (columns.stop - columns.start) / (200 * 300)
    assert AREA[0] - 0.005 < area < AREA[1] + 0.005
    assert rows.start >= 0
    assert rows.stop <= 200
    assert columns.start >= 0
    assert columns.stop <= 300


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 3)])
@pytest.mark.parametrize("kind", [*DEFECTS, *BROKEN])
def test_the_smallest_images_do(kind, size):
    image, rng = np.full((*size, 3), 9, np.uint8), np.random.default_rng(0)
    if kind in BROKEN:
        assert BROKEN[kind](image, rng).dtype == np.uint8
    else:
        assert plant(kind, image, rng, image).image.dtype == np.uint8


def test_a_patch_of_ten_per_cent_has_that_size_and_comes_from_the_other_image():
    image, other = np.zeros((100, 100, 3), np.uint8), np.full((30, 20, 3), 200, np.uint8)
    changed, mask = cut_paste(image, np.random.default_rng(0), other, share=0.1)
    assert mask.sum() == pytest.approx(1000, abs=20)
    assert (changed[mask] == 200).all()


def test_broken_images_are_what_they_are_called(textured):
    made = {name: broken(textured, np.random.default_rng(0)) for name, broken in BROKEN.items()}
    assert (made["negative"].astype(int) + textured == 255).all()
    assert np.ptp(made["blank"], axis=(0, 1)).max() == 0
    assert made["blank"][0, 0].tolist() == np.rint(textured.mean((0, 1))).tolist()
    assert (made["half black"] == 0).all(2).mean() == pytest.approx(0.5, abs=0.02)
    assert abs(made["noise"].mean() - 127.5) < 3
    assert np.sort(made["shuffled tiles"].ravel())[0] >= 60


def test_benign_changes_are_small():
    smooth = np.linspace(20, 200, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    for change in BENIGN.values():
        difference = np.abs(change(smooth).astype(int) - smooth)
        assert 0 < difference.mean() < 8
        assert change(smooth).shape == smooth.shape


def files(tmp_path, format: str, grey: bool, count: int = 4):
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), np.uint8)
        image = Image.fromarray(pixels).convert("L" if grey else "RGB")
        image.save(tmp_path / f"{number}.{format.lower()}", format, quality=60)
    return scan(open_images(tmp_path), max_pixels=10**6)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("grey", [True, False])
def test_the_form_of_files_is_found_and_given(tmp_path, format, grey):
    images, facts = files(tmp_path, format, grey)
    form = FileForm.of(images, facts)
    assert (form.format, form.size, form.grey) == (format, (40, 60), grey)
    smooth = np.linspace(0, 255, 80 * 90 * 3).reshape(80, 90, 3).astype(np.uint8)
    smooth[..., 0] = 200
    given = form.written(form.sized(smooth))
    assert given.shape == (40, 60, 3)
    assert (np.ptp(given, axis=2).max() == 0) == grey
    if format == "JPEG":
        stream = io.BytesIO((tmp_path / "0.jpeg").read_bytes())
        assert form.options["qtables"] == Image.open(stream).quantization
    elif not grey:
        assert (given == form.sized(smooth)).all(), "lossless"


def test_the_set_under_study_is_no_reference_by_name_or_by_its_files():
    photos = open_images("photos")
    hashes = [content for content, _ in some(photos, 3, seed=0)]
    others = {name for name, _ in foreign("another name", hashes, 3, seed=0)}
    assert "photos" not in others
    assert "digits" not in {name for name, _ in foreign("digits", [], 2, seed=0)}
    assert "digits" not in {name for name, _ in foreign("mnist5k", [], 2, seed=0)}
    assert "photos" in {name for name, _ in foreign("x", [], 3, seed=0)}


def test_sets_that_are_not_installed_are_left_out(monkeypatch):
    def opened(name, format):
        if name != "digits":
            raise MissingExtraError(name, "demo")
        return open_images(name, format=format)

    monkeypatch.setattr(foreign_module, "open_images", opened)
    assert [name for name, _ in foreign("x", [], 2, seed=0)] == ["digits"]


def test_some_images_are_drawn_by_seed_and_what_cannot_be_read_is_passed_over(tmp_path):
    images, _ = files(tmp_path, "PNG", True)
    (tmp_path / "1.png").write_bytes(b"no image")
    found = some(images, 10, seed=0)
    assert len(found) == 3
    assert [content for content, _ in some(images, 2, 1)] == [c for c, _ in some(images, 2, 1)]
    assert isinstance(images.table, pl.DataFrame)
