"""Manifests: files, views, combinations, other libraries' forms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beholder.core.errors import ArgumentError, DataError
from beholder.core.images import Images
from beholder.data.curate import manifest as module
from beholder.data.curate.manifest import (
    REASONS,
    SCHEMA,
    Manifest,
    dense,
    describe,
    fingerprint_of,
)
from beholder.data.sources import open_images

DIGITS = open_images("digits")
FEW = DIGITS.where(pl.col("id") < "digits-0006")  # labels 0 .. 5


def of(dataset: Images, **columns: list) -> Manifest:
    info = describe(
        "user",
        dataset=dataset.name,
        fingerprint=fingerprint_of(dataset),
        classes=dataset.classes,
    )
    return Manifest(pl.DataFrame({"id": dataset.table["id"], **columns}), info, dataset)


def dropping(*rows: int) -> Manifest:
    keep = [row not in rows for row in range(6)]
    return of(FEW, keep=keep, reason=["kept" if kept else "user" for kept in keep])


def test_the_file_has_the_columns_and_types_of_the_specification(tmp_path: Path) -> None:
    dropping(1).save(tmp_path / "m.parquet")
    file = pq.ParquetFile(tmp_path / "m.parquet")
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert list(types) == list(SCHEMA)
    assert types["weight"] == "float"
    assert types["label"] == "int32"
    assert types["group"] == "int64"
    assert types["reason"].startswith("dictionary<values=string")
    assert types["soft_values"].endswith("list<element: float>")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    info = json.loads(file.metadata.metadata[b"beholder"])
    assert info["schema_version"] == 1
    assert info["classes"] == list(FEW.classes)


def test_a_manifest_that_decides_nothing_changes_nothing() -> None:
    assert of(FEW).apply(FEW).table.equals(FEW.table)


def test_labels_soft_labels_and_weights_are_applied_and_the_rest_is_left() -> None:
    manifest = of(
        FEW,
        keep=[True, True, True, True, True, False],
        weight=[1.0, 0.5, 1.0, 1.0, 1.0, 0.0],
        label=[None, None, 7, None, None, None],
        labels=[None, None, None, [1, 3], None, None],
        soft_classes=[None, None, None, None, [4, 9], None],
        soft_values=[None, None, None, None, [0.6, 0.32], None],
        reason=["kept", "kept", "relabelled", "relabelled", "relabelled", "user"],
    )
    view = manifest.apply(FEW)
    assert len(view) == 5
    assert view.table["label"].to_list() == [0, 1, 7, 3, 4]
    assert view.table["weight"].to_list() == [None, 0.5, None, None, None]
    assert view.table["labels"].to_list() == [None, None, None, [1, 3], None]
    assert view.table["q"].is_null().to_list() == [True, True, True, True, False]
    expected = np.full(10, 0.01)
    expected[[4, 9]] = 0.6, 0.32
    np.testing.assert_allclose(view.table["q"][4].to_numpy(), expected, atol=1e-6)
    assert FEW.table["label"].to_list() == [0, 1, 2, 3, 4, 5]


def test_a_new_hard_label_takes_the_place_of_an_uncertain_one() -> None:
    q = [[0.5, 0.5, *[0.0] * 8], *[None] * 5]
    unsure = replace(FEW, table=FEW.table.with_columns(q=pl.Series(q, dtype=pl.List(pl.Float32))))
    view = of(unsure, label=[1, None, None, None, None, None]).apply(unsure)
    assert view.table["label"][0] == 1
    assert view.table["q"].null_count() == 6


def test_weights_multiply_those_of_the_data() -> None:
    weighted = replace(FEW, table=FEW.table.with_columns(weight=pl.lit(3.0, pl.Float32)))
    view = of(weighted, weight=[0.5, 1, 1, 1, 1, 2]).apply(weighted)
    assert view.table["weight"].to_list() == [1.5, 3, 3, 3, 3, 6]


def test_classes_are_matched_by_name() -> None:
    manifest = of(
        FEW,
        label=[9, None, None, None, None, None],
        soft_classes=[None, [3]] + [None] * 4,
        soft_values=[None, [1.0]] + [None] * 4,
    )
    names = tuple(reversed(FEW.classes))
    turned = replace(FEW, classes=names, table=FEW.table.with_columns(label=9 - pl.col("label")))
    view = manifest.apply(turned)
    assert names[view.table["label"][0]] == "9"
    assert names[int(view.table["q"][1].arg_max())] == "3"
    with pytest.raises(DataError, match="no class '9'"):
        manifest.apply(replace(turned, classes=names[1:]), force=True)


def test_samples_that_a_forced_manifest_does_not_name_are_left_out_and_counted() -> None:
    more = DIGITS.where(pl.col("id") < "digits-0009")
    view = dropping(1).apply(more, force=True)
    assert len(view) == 5
    assert "3 images are not in the manifest and are left out." in view.notes


def test_a_changed_label_makes_it_another_dataset() -> None:
    changed = replace(FEW, table=FEW.table.with_columns(label=pl.lit(0, pl.Int32)))
    with pytest.raises(DataError, match="fingerprint"):
        dropping(1).apply(changed)


def test_both_keeps_what_both_keep() -> None:
    one = of(
        FEW,
        keep=[False, True, True, True, True, True],
        weight=[0.0, 0.5, 1.0, 1.0, 1.0, 1.0],
        label=[None, 1, 2, None, None, None],
        reason=["outlier", "kept", "relabelled", "kept", "kept", "kept"],
        detail=["far", None, None, None, None, None],
    )
    other = of(
        FEW,
        keep=[False, True, True, False, True, True],
        weight=[0.0, 0.5, 1.0, 0.0, 1.0, 1.0],
        label=[None, None, 4, None, 5, None],
        reason=["label_error", "kept", "kept", "label_error", "relabelled", "kept"],
    )
    both = one & other
    assert both.frame["keep"].to_list() == [False, True, True, False, True, True]
    assert both.frame["weight"].to_list() == [0, 0.25, 1, 0, 1, 1]
    assert both.frame["label"].to_list() == [None, 1, 4, None, 5, None]
    assert both.frame["reason"].to_list() == [
        *("outlier", "kept", "relabelled", "label_error", "relabelled", "kept")
    ]
    assert both.frame["detail"][0] == "far"
    assert both.info["parents"] == [one.content_hash, other.content_hash]


def test_manifests_of_two_datasets_do_not_combine() -> None:
    with pytest.raises(DataError, match="from the same data"):
        _ = dropping(1) & of(DIGITS.where(pl.col("id") < "digits-0005"))


def test_draws_follow_the_weights_and_not_the_order_of_the_rows() -> None:
    manifest = of(
        FEW,
        keep=[False] + [True] * 5,
        weight=[0.0, 3.0, 1.0, 1.0, 1.0, 1.0],
        reason=["user"] + ["kept"] * 5,
    )
    rows = list(manifest.sampler(FEW, 7_000, seed=1))
    count = np.bincount(rows, minlength=6)
    assert count[0] == 0
    assert abs(count[1] - 3_000) < 4 * np.sqrt(3_000)
    turned = replace(FEW, table=FEW.table.reverse())
    drawn = [turned.table["id"][row] for row in manifest.sampler(turned, 50, seed=1)]
    assert drawn == [FEW.table["id"][row] for row in manifest.sampler(FEW, 50, seed=1)]
    assert len(manifest.sampler(FEW, 50)) == 50


def test_many_rows_go_into_a_directory_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY", 6)
    monkeypatch.setattr(module, "PART", 4)
    manifest = dropping(1)
    manifest.save(tmp_path / "m.parquet")
    names = sorted(path.name for path in (tmp_path / "m.parquet").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet"]
    assert Manifest.load(tmp_path / "m.parquet").frame.equals(manifest.frame)
    (tmp_path / "m.parquet" / names[1]).unlink()
    with pytest.raises(DataError, match="not whole"):
        Manifest.load(tmp_path / "m.parquet")


def test_parts_of_two_writings_are_not_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 4)
    dropping(1).save(tmp_path / "one")
    replaced = Manifest(dropping(2).frame, dropping(2).info | {"seed": 5})
    replaced.save(tmp_path / "two")
    part = "part-00001.parquet"
    (tmp_path / "one" / part).write_bytes((tmp_path / "two" / part).read_bytes())
    with pytest.raises(DataError, match="not whole"):
        Manifest.load(tmp_path / "one")


def test_a_url_of_fsspec_is_written_and_read() -> None:
    manifest = dropping(1)
    for url in ("memory://curate/m.parquet", "memory://curate/parts"):
        manifest.save(url)
        assert Manifest.load(url).frame.equals(manifest.frame)


def test_what_is_no_manifest_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no manifest"):
        Manifest.load(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match="is no Parquet file"):
        Manifest.load(tmp_path / "text.parquet")
    dropping(1).frame.write_parquet(tmp_path / "plain.parquet")
    with pytest.raises(DataError, match="is no manifest"):
        Manifest.load(tmp_path / "plain.parquet")
    newer = Manifest(FEW.table.select("id"), dropping().info | {"schema_version": 2})
    newer.save(tmp_path / "newer.parquet")
    with pytest.raises(DataError, match="has schema 2"):
        Manifest.load(tmp_path / "newer.parquet")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": ["a", "a"]}, "is named twice"),
        ({"keep": [True, None], "weight": [1.0, 1.0]}, "lacks keep"),
        ({"weight": [-1.0, 1.0]}, "weight below 0"),
        ({"weight": [0.0, 1.0]}, "kept with weight 0"),
        ({"keep": [False, True], "weight": [1.0, 1.0]}, "kept with weight 0"),
        ({"labels": [[2, 1], None]}, "labels out of order"),
        ({"labels": [[1, 1], None]}, "labels out of order"),
        ({"soft_classes": [[1, 2], None], "soft_values": [[1.0], None]}, "do not fit"),
        ({"soft_classes": [None, None], "soft_values": [[1.0], None]}, "do not fit"),
        ({"soft_classes": [[1], None], "soft_values": [[1.2], None]}, "sum above 1"),
        ({"soft_classes": [[1], None], "soft_values": [[-0.1], None]}, "outside 0..1"),
        ({"reason": ["bored", "kept"]}, "cannot hold"),
    ],
)
def test_nonsense_is_refused_by_name(columns: dict[str, list], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Manifest(pl.DataFrame({"id": ["a", "b"]} | columns), {})


def test_datacomp_subsets_go_out_and_come_in(tmp_path: Path) -> None:
    ids = [f"{number:032x}" for number in (3, 2**64 + 1, 7, 2**127)]
    pool = DIGITS.where(pl.col("id") < "digits-0004")
    pool = replace(pool, table=pool.table.with_columns(id=pl.Series(ids)))
    manifest = of(pool, keep=[True, True, False, True], reason=["kept", "kept", "user", "kept"])
    manifest.to_datacomp(tmp_path / "subset.npy")
    uids = np.load(tmp_path / "subset.npy")
    assert uids.dtype == np.dtype("u8,u8")
    assert uids.tolist() == [(0, 3), (1, 1), (2**63, 0)]
    back = Manifest.from_datacomp(tmp_path / "subset.npy", pool)
    assert back.frame.select("id", "keep", "reason").equals(
        manifest.frame.select("id", "keep", "reason")
    )
    with pytest.raises(DataError, match="no uid of DataComp"):
        dropping(1).to_datacomp(tmp_path / "other.npy")


def test_issues_of_datalab_come_in() -> None:
    issues = pandas.DataFrame(
        {
            "is_label_issue": [False, True, False, False, False, False],
            "label_score": [0.9, 0.1, 0.9, 0.9, 0.9, 0.9],
            "is_near_duplicate_issue": [False, False, True, True, False, False],
            "near_duplicate_score": [1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
            "near_duplicate_sets": [[], [], [3], [2], [], []],
            "is_outlier_issue": [False, True, False, False, False, True],
            "outlier_score": [0.9, 0.2, 0.9, 0.9, 0.9, 0.3],
        }
    )
    frame = Manifest.from_cleanlab(issues, FEW).frame
    assert frame["reason"].to_list() == [
        *("kept", "label_error", "kept", "near_duplicate", "kept", "outlier")
    ]
    assert frame["keep"].to_list() == [True, False, True, False, True, False]
    assert frame["partner"].to_list() == [None, None, None, "digits-0002", None, None]
    np.testing.assert_allclose(frame["score"].to_numpy(), [0.9, 0.1, 0, 0, 0.9, 0.3], atol=1e-6)
    with pytest.raises(DataError, match="6 issues, but 5"):
        Manifest.from_cleanlab(issues, FEW.where(pl.col("id") < "digits-0005"))


def test_a_contact_sheet_shows_what_is_dropped() -> None:
    sheet = dropping(0, 2).contact_sheet()
    pixels = np.asarray(sheet)
    tile = 144
    assert pixels.shape == (tile + 28, 6 * tile, 3)
    assert (pixels[:tile, :tile] < 128).any()
    assert (pixels[:, 2 * tile :] == 255).all()
    assert len(dropping(0, 2).worst("user", 1)) == 1
    with pytest.raises(ArgumentError, match="knows no images"):
        Manifest(dropping(0).frame, dropping(0).info).contact_sheet()


def test_reports_of_a_sound_set_are_good_and_of_a_bad_one_are_not() -> None:
    assert dropping().report().severity == "good"
    bad = of(FEW, keep=[False] + [True] * 5, reason=["outlier"] + ["kept"] * 5).report()
    assert bad.severity == "look"
    assert bad.values["dropped"].estimate == pytest.approx(1 / 6)
    assert [picture.id for picture in bad.pictures] == ["digits-0000"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(REASONS), min_size=6, max_size=6), st.data())
def test_any_manifest_survives_a_round_trip(reasons: list[str], data: st.DataObject) -> None:
    keep = [reason in ("kept", "relabelled") for reason in reasons]
    texts = st.lists(st.none() | st.text(max_size=20), min_size=6, max_size=6)
    numbers = st.none() | st.floats(-1e6, 1e6, width=32)
    manifest = of(
        FEW,
        keep=keep,
        reason=reasons,
        detail=data.draw(texts),
        score=data.draw(st.lists(numbers, min_size=6, max_size=6)),
    )
    manifest.save("memory://curate/any.parquet")
    assert Manifest.load("memory://curate/any.parquet").frame.equals(manifest.frame)
    assert len(manifest.apply(FEW)) == sum(keep)
    assert (manifest & manifest).frame["keep"].to_list() == keep


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(2, 12), st.data())
def test_dense_soft_labels_sum_to_one(count: int, data: st.DataObject) -> None:
    classes = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count - 1))
    raw = data.draw(st.lists(st.floats(0, 1), min_size=len(classes), max_size=len(classes)))
    values = (np.array(raw) / max(1.0, sum(raw))).tolist()
    found = dense(classes, values, count)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found[classes], values)
