"""The one reading of all images, and its cache: specs/study.md, sections 2, 6 and 10."""

from __future__ import annotations

import io
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from beholder.core import scan as module
from beholder.core.files import cache_dir
from beholder.core.images import TABLE_SCHEMA, Images
from beholder.core.pixels import measures, phash, pixel_hash, thumbnail
from beholder.core.scan import FACTS_SCHEMA, scan, thumbnails

PIXELS = 10**6


@dataclass
class Folder:
    """A store of files that counts its reads."""

    root: Path
    reads: list[str] = field(default_factory=list)

    def read(self, key: str) -> bytes:
        self.reads.append(key)
        return (self.root / key).read_bytes()

    def stat(self, key: str) -> tuple[str, int, int, int] | None:
        try:
            facts = (self.root / key).stat()
        except OSError:
            return None
        return str(self.root / key), facts.st_size, facts.st_mtime_ns, facts.st_ino


def picture(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def images_of(root: Path, names: list[str] | None = None) -> Images:
    names = sorted(path.name for path in root.iterdir()) if names is None else names
    known = {"id": names, "key": names, "path": names}
    columns = {
        name: pl.Series(known.get(name, [None] * len(names)), dtype=kind)
        for name, kind in TABLE_SCHEMA.items()
    }
    table = pl.DataFrame(columns)
    return Images("folder", (), table, Folder(root), "flat", "unlabelled")


def reads(images: Images) -> list[str]:
    assert isinstance(images.store, Folder)
    return images.store.reads


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("BEHOLDER_CACHE", str(place))
    return place


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for k in range(12):
        (root / f"{k:02d}.png").write_bytes(png(picture(k)))
    return root


@pytest.fixture
def decodes(monkeypatch) -> list[int]:
    """The sizes of all files that are decoded."""
    seen: list[int] = []
    real = module.decode

    def spy(data: bytes, max_pixels: int):
        seen.append(len(data))
        return real(data, max_pixels)

    monkeypatch.setattr(module, "decode", spy)
    return seen


def test_facts_are_those_of_the_pixels(folder):
    remaining, facts = scan(images_of(folder), max_pixels=PIXELS)
    assert dict(facts.schema) == FACTS_SCHEMA
    assert facts["id"].to_list() == remaining.table["id"].to_list() == sorted(facts["id"])
    image = picture(3)
    row = facts.row(3, named=True)
    assert (row["width"], row["height"], row["mode"], row["format"]) == (50, 40, "RGB", "PNG")
    assert row["file_size"] == len(png(image))
    assert row["exact_hash"] == pixel_hash(image)
    assert row["phash"] == phash(thumbnail(image, 32))
    assert {name: row[name] for name in measures(image)} == measures(image)
    assert np.array_equal(thumbnails(facts, 96)[3], thumbnail(image, 96))


def test_the_thumbnail_of_16_is_the_mean_of_that_of_32(folder):
    _, facts = scan(images_of(folder), max_pixels=PIXELS)
    large = thumbnails(facts, 32)[0].astype(int)
    expected = (large[:2, :2].sum() + 2) // 4
    assert thumbnails(facts, 16).shape == (12, 16, 16)
    assert thumbnails(facts, 16)[0, 0, 0] == expected


def test_the_order_of_rows_and_the_number_of_workers_change_nothing(folder):
    images = images_of(folder)
    _, one = scan(images, max_pixels=PIXELS, workers=1, use_cache=False)
    turned = images.where(pl.lit(True))
    turned = Images(**{**vars(turned), "table": images.table.reverse()})
    _, four = scan(turned, max_pixels=PIXELS, workers=4, use_cache=False)
    assert one.equals(four)


def test_unreadable_images_are_left_out_with_their_reason(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"this is a text, not an image")
    (folder / "cut.png").write_bytes((folder / "03.png").read_bytes()[:200])
    (folder / "large.png").write_bytes(png(picture(99, 200, 100)))
    names = [*sorted(path.name for path in folder.iterdir()), "gone.png"]
    remaining, facts = scan(images_of(folder, names), max_pixels=10_000)
    assert len(remaining) == len(facts) == 12
    assert dict(remaining.skipped.select("path", "reason").iter_rows()) == {
        "empty.png": "empty_file",
        "text.jpg": "not_an_image",
        "cut.png": "truncated",
        "large.png": "too_large",
        "gone.png": "missing_file",
    }


def test_an_image_deleted_in_mid_run_is_skipped_as_missing(folder):
    def delete(done: int) -> None:
        if done == 1:
            (folder / "11.png").unlink()

    remaining, facts = scan(images_of(folder), max_pixels=PIXELS, workers=1, progress=delete)
    assert len(facts) == 11
    assert remaining.skipped["reason"].to_list() == ["missing_file"]


def test_nothing_at_all_gives_an_empty_frame(tmp_path):
    (tmp_path / "none").mkdir()
    remaining, facts = scan(images_of(tmp_path / "none"), max_pixels=PIXELS)
    assert len(remaining) == len(facts) == 0
    assert dict(facts.schema) == FACTS_SCHEMA


def test_what_was_done_to_images_is_noted_with_a_count(folder):
    for name in ("x.png", "y.png"):
        clear = np.dstack([picture(1), np.full((40, 50), 128, np.uint8)])
        (folder / name).write_bytes(png(clear))
    for _ in range(2):  # read, then from the cache
        remaining, _ = scan(images_of(folder), max_pixels=PIXELS)
        assert remaining.notes == ("transparency put on white: 2 images",)


def test_progress_counts_every_image(folder):
    seen: list[int] = []
    scan(images_of(folder), max_pixels=PIXELS, progress=seen.append)
    assert seen == list(range(1, 13))


def test_a_second_scan_reads_no_file_and_gives_the_same(folder, decodes):
    (folder / "broken.png").write_bytes(b"nothing")
    first = scan(images_of(folder), max_pixels=PIXELS)
    assert len(decodes) == 13
    images = images_of(folder)
    second = scan(images, max_pixels=PIXELS)
    assert len(decodes) == 13
    assert reads(images) == []
    assert second[1].equals(first[1])
    assert second[0].skipped.equals(first[0].skipped)
    assert second[0].notes == ()


def test_a_moved_folder_is_read_but_not_decoded(folder, decodes):
    scan(images_of(folder), max_pixels=PIXELS)
    moved = folder.rename(folder.parent / "elsewhere")
    images = images_of(moved)
    scan(images, max_pixels=PIXELS)
    assert len(reads(images)) == 12
    assert len(decodes) == 12


def test_a_changed_file_is_decoded_again(folder, decodes):
    scan(images_of(folder), max_pixels=PIXELS)
    (folder / "05.png").write_bytes(png(picture(500)))
    _, facts = scan(images_of(folder), max_pixels=PIXELS)
    assert len(decodes) == 13
    assert facts["exact_hash"][5] == pixel_hash(picture(500))


def test_another_limit_of_pixels_does_not_use_what_the_old_one_found(folder):
    scan(images_of(folder), max_pixels=PIXELS)
    remaining, _ = scan(images_of(folder), max_pixels=100)
    assert remaining.skipped["reason"].unique().to_list() == ["too_large"]
    remaining, _ = scan(images_of(folder), max_pixels=PIXELS)
    assert len(remaining) == 12


def test_without_cache_nothing_is_written(folder, cache, decodes):
    scan(images_of(folder), max_pixels=PIXELS, use_cache=False)
    scan(images_of(folder), max_pixels=PIXELS, use_cache=False)
    assert len(decodes) == 24
    assert not cache.exists()


def test_what_was_scanned_before_an_interrupt_is_kept(folder, decodes):
    def interrupt(done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(images_of(folder), max_pixels=PIXELS, workers=1, progress=interrupt)
    decodes.clear()
    _, facts = scan(images_of(folder), max_pixels=PIXELS, workers=1)
    assert len(decodes) == 5
    assert len(facts) == 12


def works_with_a_warning(folder: Path) -> None:
    remaining, facts = scan(images_of(folder), max_pixels=PIXELS)
    assert len(remaining) == len(facts) == 12
    assert len(remaining.notes) == 1
    assert "slower" in remaining.notes[0]
    assert str(folder.parent) not in remaining.notes[0]


def test_a_broken_cache_is_no_error(folder, cache):
    cache.mkdir()
    (cache / "images.sqlite").write_bytes(b"not a database at all " * 1000)
    works_with_a_warning(folder)


def test_a_cache_that_cannot_be_made_is_no_error(folder, cache):
    cache.write_text("a file where the directory should be")
    works_with_a_warning(folder)


def limited(monkeypatch, *pragmas: str) -> None:
    """Every connection starts with these pragmas, once its tables are there."""
    real = module._open_database

    def open_limited(path: Path) -> sqlite3.Connection:
        database = real(path)
        for pragma in pragmas:
            database.execute(pragma)
        return database

    monkeypatch.setattr(module, "_open_database", open_limited)


def test_a_full_disk_is_no_error(folder, monkeypatch):
    limited(monkeypatch, "PRAGMA max_page_count = 1")
    works_with_a_warning(folder)


def test_a_read_only_cache_is_still_read(folder, monkeypatch, decodes):
    for k in range(6, 12):
        (folder / f"{k:02d}.png").rename(folder.parent / f"{k:02d}.png")
    scan(images_of(folder), max_pixels=PIXELS)
    for k in range(6, 12):
        (folder.parent / f"{k:02d}.png").rename(folder / f"{k:02d}.png")
    limited(monkeypatch, "PRAGMA query_only = 1")
    works_with_a_warning(folder)
    assert len(decodes) == 12


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_scan import PIXELS, images_of, scan
images, facts = scan(images_of(Path(sys.argv[2])), max_pixels=PIXELS, workers=2)
assert images.notes == (), images.notes
facts.write_parquet(sys.argv[3])
"""


def test_two_processes_at_once_give_equal_results(folder, tmp_path):
    for k in range(12, 500):
        (folder / f"{k:03d}.png").write_bytes(png(picture(k, 20, 20)))
    script = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder)]
    running = [subprocess.Popen([*script, str(tmp_path / f"{k}.parquet")]) for k in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    first, second = (pl.read_parquet(tmp_path / f"{k}.parquet") for k in range(2))
    assert len(first) == 500
    assert first.equals(second)
    with sqlite3.connect(cache_dir() / "images.sqlite") as database:
        assert database.execute("SELECT count(*) FROM facts").fetchone() == (500,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
