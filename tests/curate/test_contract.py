"""What every curator promises: specs/data.md, 'Contract test of every curator'."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import polars as pl
import pytest
from study.world import MODEL, draw, folders

from beholder.core.errors import BeholderError, DataError
from beholder.core.images import Images
from beholder.core.registry import find, systems
from beholder.curate import curate
from beholder.data.curate.base import Manifest
from beholder.data.sources import open_images

NAMES = [entry.name for entry in systems("curator")]
Made = Callable[..., Manifest]
every_curator = pytest.mark.parametrize("name", NAMES)


def needs(name: str) -> frozenset[str]:
    return find("curator", name).load().needs


def run(images: Images, name: str, budget: float | None = None, seed: int = 0) -> Manifest:
    if budget is None and "budget" in needs(name):
        budget = 0.5
    return curate(images, name, MODEL, budget, seed=seed)


@pytest.fixture(scope="session")
def made(images: Images) -> Made:
    """`run` on the shared images, each asked for once."""
    remember = lru_cache(maxsize=None, typed=True)  # a share of 1.0 is not a count of 1
    return remember(lambda name, budget=None, seed=0: run(images, name, budget, seed))


def hashes(place: Path) -> dict[str, str]:
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@every_curator
@pytest.mark.parametrize(("budget", "kept"), [(0.3, 13), (1, 1), (40, 40), (1.0, 42)])
def test_a_budget_is_kept_exactly(
    images: Images, made: Made, name: str, budget: float, kept: int
) -> None:
    manifest = made(name, budget)
    assert manifest.kept == kept
    assert len(manifest.apply(images)) == kept


@every_curator
def test_the_order_of_the_files_changes_nothing(images: Images, made: Made, name: str) -> None:
    shuffled = replace(images, table=images.table.sample(fraction=1, shuffle=True, seed=3))
    assert run(shuffled, name, 0.5).frame.equals(made(name, 0.5).frame)


@every_curator
def test_no_file_is_touched_and_none_is_written_beside(
    place: Path, images: Images, name: str
) -> None:
    before = hashes(place)
    run(images, name).apply(images)
    assert hashes(place) == before


@every_curator
@pytest.mark.parametrize("file", ["m.parquet", "directory"])
def test_what_is_saved_is_what_is_loaded(
    images: Images, made: Made, name: str, file: str, tmp_path: Path
) -> None:
    manifest = made(name)
    manifest.save(tmp_path / file)
    assert (tmp_path / file).is_dir() == (file == "directory")
    loaded = Manifest.load(tmp_path / file, images)
    assert loaded.frame.equals(manifest.frame)
    assert loaded.info == manifest.info
    assert loaded.content_hash == manifest.content_hash


@every_curator
def test_a_seed_repeats_and_another_one_differs_where_it_is_chance(
    images: Images, made: Made, name: str
) -> None:
    one, again, other = made(name), run(images, name), run(images, name, seed=1)
    assert one.content_hash == again.content_hash
    if name in ("random", "k_centre"):
        assert not one.frame["keep"].equals(other.frame["keep"])


@every_curator
def test_one_class_only(tmp_path: Path, name: str) -> None:
    folders(tmp_path, ["zero"], 12)
    images = open_images(tmp_path / "zero")
    images = replace(
        images,
        kind="classes",
        classes=("zero",),
        table=images.table.with_columns(label=pl.lit(0, pl.Int32)),
    )
    assert len(run(images, name)) == 12


@every_curator
def test_one_image_only(images: Images, name: str) -> None:
    alone = images.where(pl.col("id") == images.table["id"][0])
    manifest = run(alone, name)
    assert manifest.frame["keep"].to_list() == [True]


@every_curator
def test_a_broken_file_is_unreadable_and_no_crash(place: Path, tmp_path: Path, name: str) -> None:
    broken = shutil.copytree(place, tmp_path / "three")
    data = (broken / "one" / "one_003.png").read_bytes()
    (broken / "one" / "one_003.png").write_bytes(data[: len(data) // 2])
    images = open_images(broken)
    manifest = run(images, name, 41)
    assert len(manifest) == len(images) == 42
    row = manifest.frame.row(by_predicate=pl.col("id") == "one/one_003.png", named=True)
    assert (row["keep"], row["weight"], row["reason"]) == (False, 0, "unreadable")
    assert manifest.kept == 41


@every_curator
def test_labels_are_asked_for_where_they_are_needed(tmp_path: Path, name: str) -> None:
    for number in range(10):
        draw(number % 3, number).save(tmp_path / f"{number}.png")
    images = open_images(tmp_path)
    if "labels" in needs(name):
        with pytest.raises(DataError, match="needs labels"):
            run(images, name)
    else:
        assert len(run(images, name)) == 10


@every_curator
def test_what_is_kept_keeps_all_that_is_known_of_it(images: Images, name: str) -> None:
    told = images.table.with_columns(
        mask=pl.format("masks/{}", "id"), group_site=pl.col("id").str.head(1)
    )
    known = replace(images, table=told)
    manifest = run(known, name, 0.5)
    kept = manifest.apply(known)
    expected = told.filter(pl.col("id").is_in(kept.table["id"].implode()))
    assert kept.table.select("id", "mask", "group_site").equals(
        expected.select("id", "mask", "group_site")
    )


@every_curator
def test_another_dataset_is_refused_unless_forced(images: Images, made: Made, name: str) -> None:
    manifest = made(name)
    fewer = images.where(pl.col("id") != images.table["id"][0])
    with pytest.raises(DataError, match="fingerprint"):
        manifest.apply(fewer)
    assert len(manifest.apply(fewer, force=True)) <= len(fewer)


@every_curator
def test_its_report_says_what_it_found_and_what_it_cannot_see(
    images: Images, made: Made, name: str
) -> None:
    section = made(name).report()
    assert section.finding.endswith(".")
    assert section.assumptions
    assert section.frame("reasons")["images"].sum() == len(images)
    section.to_dict()


@every_curator
def test_a_budget_that_makes_no_sense_is_refused(images: Images, name: str) -> None:
    for budget in (0, 43, 0.0, 1.5, -0.5):
        with pytest.raises(BeholderError, match="Budget"):
            run(images, name, budget)
