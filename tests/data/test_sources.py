"""Opening data: every accepted form, every ambiguity, the built-in sets, order and fingerprint."""

import io
import json
import shutil
import tarfile
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_files import encoded, picture

from beholder.core.errors import (
    AmbiguousDataError,
    ArgumentError,
    BeholderError,
    DataError,
    MissingExtraError,
)
from beholder.core.images import TABLE_SCHEMA, fingerprint
from beholder.data.sources import BUILTIN, builtin, open_images
from beholder.data.sources.emoji_groups import base_of, group_of
from beholder.data.sources.names import class_order, natural_key
from beholder.data.sources.webdataset import expand

PNG = encoded(picture(8), "PNG")


def plant(root: Path, *paths: str) -> Path:
    """Image files, each with other pixels, at `paths` below `root`."""
    for number, path in enumerate(paths):
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(picture(8, seed=number), "PNG"))
    return root


def labels(images) -> dict[str, str | None]:
    names = [None if i is None else images.classes[i] for i in images.table["label"]]
    return dict(zip(images.table["id"], names, strict=True))


def hashes(images) -> dict[str, str]:
    return {id: images.store.read(key).hex() for id, key in images.table["id", "key"].iter_rows()}


# Class folders, flat folders


def test_class_folders_give_classes_in_natural_order(tmp_path):
    images = open_images(plant(tmp_path / "d", "10/a.png", "2/b.png", "2/c.PNG"))
    assert images.classes == ("2", "10")
    assert labels(images) == {"2/b.png": "2", "2/c.PNG": "2", "10/a.png": "10"}
    assert (images.format, images.kind, images.name) == ("folders", "classes", "d")
    assert images.table.schema == pl.Schema(TABLE_SCHEMA)
    assert images.read(0).shape == (8, 8, 3)


def test_folders_below_the_classes_are_a_group_where_every_class_has_two(tmp_path):
    root = plant(tmp_path / "d", "a/x/1.png", "a/y/1.png", "b/x/1.png", "b/y/z/1.png")
    images = open_images(root)
    assert images.groups == ["folder"]
    assert images.table["group_folder"].to_list() == ["x", "y", "x", "y/z"]
    plant(root, "c/x/1.png")
    assert open_images(root).groups == []


def test_images_alone_are_unlabelled(tmp_path):
    images = open_images(plant(tmp_path / "d", "10.png", "9.png"))
    assert (images.format, images.kind, images.classes) == ("flat", "unlabelled", ())
    assert images.table["id"].to_list() == ["9.png", "10.png"]


def test_one_child_folder_is_unlabelled_and_says_where_classes_would_be(tmp_path):
    images = open_images(plant(tmp_path / "d", "all/cat/1.png", "all/dog/1.png"))
    assert images.kind == "unlabelled"
    assert "holds cat, dog" in images.notes[0]


def test_other_files_are_ignored_and_counted(tmp_path):
    root = plant(tmp_path / "d", "a/1.png", "b/1.png")
    for name in ("a/1.txt", "a/1.xml", "b/1.json", "Thumbs.db", ".hidden.png"):
        (root / name).write_text("x")
    plant(root, "__MACOSX/a/1.png")
    images = open_images(root)
    assert len(images) == 2
    assert "5 files are not images (2 hidden or system, 1 .txt, 1 .xml, 1 .json)" in images.notes


def test_an_empty_folder_beside_the_classes_is_named(tmp_path):
    root = plant(tmp_path / "d", "a/1.png", "b/1.png")
    (root / "c").mkdir()
    assert "no images in c: not taken as a class" in open_images(root).notes


def test_names_are_nfc_and_keep_their_case(tmp_path):
    root = plant(tmp_path / "d", "e\u0301te\u0301/1.png", "Hiver/1.png")
    images = open_images(root)
    assert images.classes == ("Hiver", unicodedata.normalize("NFC", "e\u0301te\u0301"))
    assert images.read(0).shape == (8, 8, 3)


def test_names_that_differ_only_in_case_are_refused(tmp_path):
    with pytest.raises(AmbiguousDataError, match="'Cat' and 'cat' differ only in case"):
        open_images(plant(tmp_path / "d", "Cat/1.png", "cat/1.png"))


def test_classes_fixes_the_order_and_the_names_allowed(tmp_path):
    root = plant(tmp_path / "d", "a/1.png", "b/1.png")
    assert open_images(root, classes=["b", "a", "c"]).classes == ("b", "a", "c")
    with pytest.raises(ArgumentError, match="'b' is not among --classes a,c"):
        open_images(root, classes=["a", "c"])


def test_a_file_name_that_is_not_utf8_is_read(tmp_path):
    root = plant(tmp_path / "d", "a.png")
    with open(bytes(root) + b"/\xff.png", "wb") as stream:
        stream.write(PNG)
    images = open_images(root)
    assert images.table["id"].to_list() == ["\\xff.png", "a.png"]
    assert images.read(0).shape == images.read(1).shape


def test_links_are_followed_and_each_real_folder_is_read_once(tmp_path):
    plant(tmp_path / "elsewhere", "1.png")
    root = plant(tmp_path / "d", "a/1.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    images = open_images(root)
    assert images.table["id"].to_list() == ["a/1.png", "b/1.png"]
    assert images.skipped.rows() == [
        ("a/up", "cycle", "links back to a folder above it"),
        ("above", "cycle", "links back to a folder above it"),
    ]
    assert "1 links lead to folders that were read already: c" in images.notes


def test_one_class_by_format_is_one_class(tmp_path):
    images = open_images(plant(tmp_path / "d", "good/1.png", "good/2.png"), format="folders")
    assert (images.kind, images.classes) == ("one_class", ("good",))


# Split folders, anomaly


def test_split_folders_give_split_and_class(tmp_path):
    root = plant(tmp_path / "d", "Train/a/1.png", "Train/b/1.png", "valid/a/1.png", "eval/b/1.png")
    images = open_images(root)
    assert (images.format, images.classes) == ("split_folders", ("a", "b"))
    roles = dict(images.table.select("id", "split").iter_rows())
    assert roles == {
        "eval/b/1.png": "test",
        "Train/a/1.png": "train",
        "Train/b/1.png": "train",
        "valid/a/1.png": "val",
    }
    assert labels(images)["eval/b/1.png"] == "b"


def test_flat_split_folders_are_unlabelled(tmp_path):
    images = open_images(plant(tmp_path / "d", "train/1.png", "test/1.png"))
    assert (images.kind, images.table["split"].to_list()) == ("unlabelled", ["test", "train"])


def test_images_beside_the_parts_of_a_split_are_left_out_and_counted(tmp_path):
    images = open_images(plant(tmp_path / "d", "cover.png", "train/1.png", "test/1.png"))
    assert (images.format, len(images)) == ("split_folders", 2)
    assert "1 images outside the parts of the split are left out" in images.notes


def test_unlabelled_images_of_a_labelled_split_are_skipped_as_such(tmp_path):
    root = plant(tmp_path / "d", "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png")
    images = open_images(root)
    assert len(images) == 2
    assert images.skipped["reason"].to_list() == ["label_missing", "label_missing"]


MVTEC = ("train/good/0.png", "test/good/0.png", "test/crack/0.png", "test/cut/0.png")


def test_the_anomaly_layout_is_one_class_with_masks(tmp_path):
    root = plant(tmp_path / "d", *MVTEC, "ground_truth/crack/0_mask.png")
    images = open_images(root)
    assert (images.format, images.kind) == ("anomaly", "one_class")
    assert images.classes == ("good", "crack", "cut")
    assert len(images) == 4
    masks = dict(images.table.select("id", "mask").iter_rows())
    assert masks["test/crack/0.png"] == "ground_truth/crack/0_mask.png"
    assert masks["test/cut/0.png"] is None


def test_the_anomaly_layout_needs_no_masks(tmp_path):
    assert open_images(plant(tmp_path / "d", *MVTEC)).format == "anomaly"


def test_a_forced_anomaly_layout_must_be_one(tmp_path):
    with pytest.raises(DataError, match="no anomaly layout"):
        open_images(plant(tmp_path / "d", "train/1.png", "test/1.png"), format="anomaly")


# Ambiguities


@pytest.mark.parametrize(
    ("paths", "words", "options"),
    [
        (("0.png", "a/1.png", "b/1.png"), "directly", "folders flat"),
        (("train/1.png", "cat/1.png", "dog/1.png"), "parts of a split", "folders split_folders"),
        (("test/1.png", "cat/1.png", "dog/1.png"), "parts of a split", "folders split_folders"),
    ],
    ids=["images beside class folders", "train beside classes", "a class called test"],
)
def test_two_readings_are_an_error_that_names_the_option_for_each(tmp_path, paths, words, options):
    root = plant(tmp_path / "d", *paths)
    with pytest.raises(AmbiguousDataError, match=words) as caught:
        open_images(root)
    assert caught.value.exit_code == 2
    for option in options.split():
        assert f"--format {option}" in caught.value.hint
        assert open_images(root, format=option).format == option


def test_two_tables_are_an_error(tmp_path):
    root = plant(tmp_path / "d", "1.png")
    for name in ("labels.csv", "metadata.csv"):
        (root / name).write_text("path,label\n1.png,a\n")
    with pytest.raises(AmbiguousDataError, match=r"labels\.csv and metadata\.csv"):
        open_images(root)
    assert open_images(root / "labels.csv").format == "table"


def test_a_table_that_contradicts_the_class_folders_shows_three_files(tmp_path):
    root = plant(tmp_path / "d", *(f"{c}/{n}.png" for c in "ab" for n in range(2)))
    rows = [f"{c}/{n}.png,{'a' if c == 'b' else 'b'}" for c in "ab" for n in range(2)]
    (root / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    with pytest.raises(AmbiguousDataError) as caught:
        open_images(root)
    assert str(caught.value).count(".png is") == 3
    assert labels(open_images(root, format="table"))["a/0.png"] == "b"
    assert labels(open_images(root, format="folders"))["a/0.png"] == "a"


def test_a_table_that_agrees_with_the_class_folders_is_read(tmp_path):
    root = plant(tmp_path / "d", "a/0.png", "b/0.png", "b/1.png")
    (root / "labels.csv").write_text("path,label,source\na/0.png,a,s1\nb/0.png,b,s2\n")
    images = open_images(root)
    assert (images.format, images.source_given) == ("table", True)
    assert "1 images are not in the table" in images.notes


# Nothing there


def test_nothing_there_suggests_near_names(tmp_path):
    plant(tmp_path / "pictures", "1.png")
    with pytest.raises(DataError, match="Did you mean pictures") as caught:
        open_images(tmp_path / "picturs")
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="Did you mean solar"):
        open_images("solra")


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="It is empty"):
        open_images(tmp_path / "d")
    (tmp_path / "d" / "a.pdf").write_text("x")
    with pytest.raises(DataError, match=r"1 \.pdf"):
        open_images(tmp_path / "d")


def test_unknown_prefixes_and_formats_list_the_known_ones(tmp_path):
    with pytest.raises(ArgumentError, match="coco:, wds:, parquet:, hf:"):
        open_images("lance:somewhere")
    with pytest.raises(ArgumentError, match="openimages"):
        open_images("openimages:somewhere")
    with pytest.raises(ArgumentError, match="split_folders"):
        open_images(tmp_path, format="yolo")


def test_options_that_do_not_apply_are_refused(tmp_path):
    root = plant(tmp_path / "d", "a/1.png", "b/1.png")
    with pytest.raises(ArgumentError, match="--label-column does not apply"):
        open_images(root, label_column="x")


@pytest.mark.parametrize("name", ["one.png", "words.md"])
def test_a_single_file_that_is_no_data_set_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(PNG)
    with pytest.raises(DataError):
        open_images(tmp_path / name)


# COCO


def coco(root: Path, categories: list[list[int]]) -> Path:
    """One image per entry, with a box for each of its categories (1 = cat, 2 = dog, 3 = unused)."""
    names = [f"{number}.png" for number in range(len(categories))]
    plant(root, *names)
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "x"}],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "category_id": category, "bbox": [0, 0, 1, 1]}
            for n, found in enumerate(categories)
            for k, category in enumerate(found)
        ],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json"


def test_coco_with_one_category_per_image_is_classes(tmp_path):
    images = open_images(coco(tmp_path / "d", [[1], [2, 2], []]))
    assert (images.format, images.kind) == ("coco", "classes")
    assert labels(images) == {"0.png": "cat", "1.png": "dog"}
    assert images.skipped["reason"].to_list() == ["label_missing"]
    assert "3 boxes are there: only the classes of the images are judged" in images.notes


def test_coco_with_several_categories_per_image_is_multilabel(tmp_path):
    images = open_images(f"coco:{coco(tmp_path / 'd', [[1, 2], [2], []])}")
    assert images.kind == "multilabel"
    assert images.table["labels"].to_list() == [[0, 1], [1], []]


def test_coco_finds_its_images_below_root(tmp_path):
    file = coco(tmp_path / "d", [[1], [2]])
    shutil.move(file, tmp_path / "instances.json")
    with pytest.raises(DataError, match="--root d/"):
        open_images(tmp_path / "instances.json")
    assert len(open_images(tmp_path / "instances.json", root=tmp_path / "d")) == 2


def test_json_that_is_not_coco_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(DataError):
        open_images(tmp_path / "a.json")
    with pytest.raises(DataError, match="keys annotations, categories, images"):
        open_images(f"coco:{tmp_path / 'a.json'}")


# WebDataset


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shard(path: Path, classes: str, kind: str = "cls") -> Path:
    members: dict[str, bytes] = {}
    for number, name in enumerate(classes):
        members[f"x/{number:03d}.png"] = encoded(picture(8, seed=number), "PNG")
        content = json.dumps({"label": name}) if kind == "json" else name
        members[f"x/{number:03d}.{kind}"] = content.encode()
    return tar(path, members)


@pytest.mark.parametrize("kind", ["cls", "json", "txt"])
def test_tar_files_give_labels_from_their_neighbours(tmp_path, kind):
    images = open_images(shard(tmp_path / "s.tar", "ab", kind))
    assert (images.format, images.classes) == ("webdataset", ("a", "b"))
    assert images.table["id"].to_list() == ["s.tar/x/000", "s.tar/x/001"]
    assert (images.read(1) == picture(8, seed=1)).all()


def test_a_folder_of_tar_files_and_a_range_are_the_same(tmp_path):
    shard(tmp_path / "d" / "s-00.tar", "ab")
    shard(tmp_path / "d" / "s-01.tar", "ba")
    folder = open_images(tmp_path / "d")
    for text in (f"{tmp_path}/d/s-{{00..01}}.tar", f"wds:{tmp_path}/d/s-{{00..01}}.tar"):
        assert open_images(text).table.equals(folder.table)
    with pytest.raises(DataError, match=r"1 of 3 tar files are missing: s-02\.tar"):
        open_images(f"{tmp_path}/d/s-{{00..02}}.tar")


def test_ranges_keep_their_zeros_and_multiply():
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{0..1}-{0..1}") == ["0-0", "0-1", "1-0", "1-1"]


def test_captions_are_not_taken_for_classes(tmp_path):
    members = {}
    for number in range(60):
        members |= {f"{number}.jpg": PNG, f"{number}.txt": f"a caption {number}".encode()}
    images = open_images(tar(tmp_path / "s.tar", members))
    assert images.kind == "unlabelled"
    assert "60 different texts are captions" in images.notes[0]


def test_a_cut_tar_file_gives_what_is_whole(tmp_path):
    path = shard(tmp_path / "s.tar", "abab")
    path.write_bytes(path.read_bytes()[: 512 * 9 + 100])
    images = open_images(path)
    assert 0 < len(images) < 4
    assert ("s.tar", "truncated") in images.skipped.select("path", "reason").rows()


def test_a_compressed_tar_file_is_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="gunzip"):
        open_images(tmp_path / "s.tar")


# Parquet, Arrow, Hugging Face


def frame(count: int = 4) -> pl.DataFrame:
    cells = [{"bytes": encoded(picture(8, seed=n), "PNG"), "path": None} for n in range(count)]
    return pl.DataFrame({"image": cells, "label": ["b", "a"] * (count // 2), "source": "s"})


@pytest.mark.parametrize("as_bytes", [False, True], ids=["struct", "bytes"])
def test_parquet_with_the_images_inside(tmp_path, as_bytes):
    table = frame(6)
    if as_bytes:
        table = table.with_columns(pl.col("image").struct.field("bytes").alias("image"))
    table.write_parquet(tmp_path / "d.parquet", row_group_size=2)
    images = open_images(tmp_path / "d.parquet")
    assert (images.format, images.classes, images.source_given) == ("parquet", ("a", "b"), True)
    for row in (5, 0, 3):
        assert (images.read(row) == picture(8, seed=row)).all()


def test_a_folder_of_parquet_files_gives_the_split_by_name(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        frame(2).write_parquet(tmp_path / "d" / f"{name}.parquet")
    images = open_images(f"parquet:{tmp_path / 'd'}")
    assert images.table["split"].to_list() == ["train"] * 4 + ["val"] * 2
    assert images.table["id"].n_unique() == 6
    assert (images.read(5) == picture(8, seed=1)).all()


def test_parquet_with_paths_is_a_table(tmp_path):
    plant(tmp_path, "1.png", "2.png")
    table = pl.DataFrame({"path": ["1.png", "2.png"], "label": [10, 9]})
    table.write_parquet(tmp_path / "d.parquet")
    images = open_images(tmp_path / "d.parquet")
    assert images.classes == ("9", "10")
    assert labels(images) == {"1.png": "10", "2.png": "9"}


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ape"])}
    )
    cells = [{"bytes": encoded(picture(8, seed=n), "PNG"), "path": None} for n in range(4)]
    part = datasets.Dataset.from_dict({"img": cells, "label": [0, 1, 0, 1]}, features=features)
    return datasets, part


def test_a_saved_dataset_keeps_its_class_names(tmp_path, saved):
    _, part = saved
    part.save_to_disk(tmp_path / "d")
    images = open_images(f"hf:{tmp_path / 'd'}")
    assert (images.format, images.classes) == ("datasets", ("ape", "zebra"))
    assert list(labels(images).values()) == ["zebra", "ape", "zebra", "ape"]
    assert (images.read(2) == picture(8, seed=2)).all()


def test_a_saved_dataset_dict_gives_the_split(tmp_path, saved):
    datasets, part = saved
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(tmp_path / "d")
    images = open_images(f"hf:{tmp_path / 'd'}")
    assert images.table["split"].to_list() == ["train"] * 4 + ["val"] * 4
    assert images.table["id"][5] == "validation/1"
    with pytest.raises(DataError, match="hf:"):
        open_images(tmp_path / "d")


def test_parquet_written_by_datasets_keeps_its_class_names(tmp_path, saved):
    _, part = saved
    part.to_parquet(tmp_path / "d.parquet")
    assert open_images(tmp_path / "d.parquet").classes == ("ape", "zebra")


def test_an_arrow_file_of_datasets_is_read(tmp_path, saved):
    _, part = saved
    part.save_to_disk(tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.arrow")
    images = open_images(file)
    assert images.classes == ("ape", "zebra")
    assert (images.read(3) == picture(8, seed=3)).all()


def test_a_hub_that_does_not_answer_is_a_data_error(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="hf:someone/something cannot be opened: offline"):
        open_images("hf:someone/something")


# Built-in data


def test_solar_is_the_published_set():
    images = open_images("solar")
    defect = images.table["q"].list.get(1)
    counts = [int(((defect - p).abs() < 1e-6).sum()) for p in (0, 1 / 3, 2 / 3, 1)]
    assert counts == [1508, 295, 106, 715]
    assert (len(images), images.classes, images.kind) == (2624, ("good", "defect"), "classes")
    assert images.table["group_type"].value_counts().sort("group_type").rows() == [
        ("mono", 1074),
        ("poly", 1550),
    ]
    assert images.table["label"].sum() == 106 + 715
    assert round(images.table["q"].cast(pl.List(pl.Float64)).list.max().mean(), 6) == 0.949060
    assert images.read(0).shape == (300, 300, 3)


def test_textile_is_one_class_with_nominal_in_train():
    images = open_images("textile")
    assert (images.kind, images.format) == ("one_class", "anomaly")
    assert images.classes == ("nominal", "global", "local")
    counts = images.table.group_by("label", "split").len().sort("label").rows()
    assert counts == [(0, "train", 1000), (1, "test", 500), (2, "test", 500)]
    assert images.read(1999).shape == (250, 250, 3)


def test_openmoji_keeps_variants_in_one_source():
    images = open_images("openmoji")
    assert len(images) == 4050
    assert images.classes[:4] == ("activities", "animals", "flags", "food")
    assert len(images.classes) == 9
    wave = images.table.filter(pl.col("source") == "1F44B")
    assert len(wave) == 6
    assert images.table.group_by("source").agg(pl.col("label").n_unique())["label"].max() == 1
    red = images.read(images.table["id"].to_list().index("1F534"))
    assert red.shape == (224, 224, 3)
    assert (red[0, 0] == 255).all()
    assert red[112, 112, 0] > 150 > red[112, 112, 1]


@pytest.mark.parametrize(
    ("points", "group"),
    [
        ("1F600", "smileys"),
        ("1F44B-1F3FD", "people"),
        ("1F436", "animals"),
        ("1F34E", "food"),
        ("1F697", "travel"),
        ("26BD", "activities"),
        ("1F4F7", "objects"),
        ("267B", "symbols"),
        ("1F1E9-1F1EA", "flags"),
        ("0031-FE0F-20E3", "symbols"),
        ("265A", "symbols"),
    ],
)
def test_emoji_belong_to_the_groups_of_unicode(points, group):
    assert group_of(tuple(int(point, 16) for point in points.split("-"))) == group


def test_pairs_with_two_tones_go_with_the_plain_pair():
    two = (0x1F469, 0x1F3FB, 0x200D, 0x1F91D, 0x200D, 0x1F468, 0x1F3FF)
    assert base_of(two) == base_of((0x1F46B, 0x1F3FC)) == (0x1F46B,)


def test_digits_and_mnist_are_read_as_pictures():
    digits, mnist = open_images("digits"), open_images("mnist5k")
    assert (len(digits), len(mnist)) == (1797, 5000)
    assert digits.classes == mnist.classes == tuple("0123456789")
    assert digits.table["label"][:10].to_list() == list(range(10))
    assert digits.read(0)[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert mnist.read(0).shape == (28, 28, 3)
    assert mnist.table["label"].value_counts()["count"].to_list() == [500] * 10


def test_photos_are_photographs_without_labels():
    images = open_images("photos")
    assert (len(images), images.kind) == (21, "unlabelled")
    assert images.read(images.table["id"].to_list().index("chelsea.png")).shape == (300, 451, 3)


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_built_in_paths_are_never_absolute_and_notes_are_given(name):
    images = open_images(name)
    assert images.skipped.is_empty()
    assert not images.table["path"].str.starts_with("/").any()
    assert images.table["id"].is_unique().all()
    assert images.root_label == name


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(builtin, "find_spec", lambda name: None)
    for name in BUILTIN:
        with pytest.raises(MissingExtraError, match=r"beholder\[demo\]"):
            open_images(name)


def test_a_folder_wins_over_a_built_in_name_and_it_is_noted(tmp_path, monkeypatch):
    plant(tmp_path / "solar", "a/1.png", "b/1.png")
    monkeypatch.chdir(tmp_path)
    images = open_images("solar")
    assert len(images) == 2
    assert "--format builtin" in images.notes[0]
    assert len(open_images("solar", format="builtin")) == 2624


# Order and fingerprint

texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.from_regex(r"[a-c]?[0-9]{1,3}[A-C]?")


@settings(deadline=None, derandomize=True, max_examples=200)
@given(a=texts, b=texts, c=texts)
def test_natural_sort_is_a_total_order(a, b, c):
    assert (natural_key(a) < natural_key(b)) + (natural_key(b) < natural_key(a)) == (a != b)
    if natural_key(a) <= natural_key(b) <= natural_key(c):
        assert natural_key(a) <= natural_key(c)


def test_natural_sort_puts_two_before_ten_at_any_length():
    assert class_order(["10", "2", "1", "x10", "x2"]) == ("1", "2", "10", "x2", "x10")
    assert class_order(["1" + "0" * 5000, "9" * 5000])[0] == "9" * 5000


def table(rows: list[dict]) -> pl.DataFrame:
    schema = {**TABLE_SCHEMA, "group_site": pl.String}
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


FIELDS = {
    "id": st.text(min_size=1, max_size=4),
    "label": st.sampled_from([None, 0, 1]),
    "q": st.sampled_from([None, [0.25, 0.75], [0.5, 0.5]]),
    "labels": st.sampled_from([None, [], [0], [0, 1]]),
    "source": st.none() | st.text(min_size=1, max_size=3),
    "split": st.sampled_from([None, "train", "test"]),
    "weight": st.sampled_from([None, 0.0, 0.5, 1.0]),
    "group_site": st.none() | st.text(min_size=1, max_size=3),
}
rows_of_tables = st.lists(
    st.fixed_dictionaries(FIELDS), min_size=1, max_size=4, unique_by=lambda row: row["id"]
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(rows=rows_of_tables, data=st.data())
def test_fingerprint_changes_with_any_field_and_not_with_the_order(rows, data):
    known = {row["id"]: f"{n:032x}" for n, row in enumerate(rows)}
    whole = fingerprint(table(rows), ("a", "b"), known)
    assert len(whole) == 32
    shuffled = data.draw(st.permutations(rows))
    assert fingerprint(table(shuffled), ("a", "b"), known) == whole
    which = data.draw(st.sampled_from(rows))
    name = data.draw(st.sampled_from([name for name in FIELDS if name != "id"]))
    changed = data.draw(FIELDS[name].filter(lambda value: value != which[name]))
    other = [{**row, name: changed} if row is which else row for row in rows]
    assert fingerprint(table(other), ("a", "b"), known) != whole
    assert fingerprint(table(rows), ("a", "b"), {**known, which["id"]: "f" * 32}) != whole


def test_fingerprint_cannot_be_forged_by_marks_inside_names():
    one = table([{"id": "a", "source": "x\0test"}])
    two = table([{"id": "a", "source": "x", "split": "test"}])
    assert fingerprint(one, (), {"a": "0"}) != fingerprint(two, (), {"a": "0"})


def test_fingerprint_goes_by_class_names_not_by_their_numbers():
    one, two = table([{"id": "a", "label": 0}]), table([{"id": "a", "label": 1}])
    assert fingerprint(one, ("x", "y"), {"a": "0"}) == fingerprint(two, ("y", "x"), {"a": "0"})
    assert fingerprint(one, ("x", "y"), {"a": "0"}) != fingerprint(one, ("z", "y"), {"a": "0"})


def test_fingerprint_survives_a_moved_folder_but_no_changed_byte(tmp_path):
    here = open_images(plant(tmp_path / "here", "a/1.png", "b/1.png"))
    print_here = here.fingerprint(hashes(here))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = open_images(tmp_path / "there")
    assert there.fingerprint(hashes(there)) == print_here
    (tmp_path / "there" / "a" / "1.png").write_bytes(PNG + b"\0")
    assert there.fingerprint(hashes(there)) != print_here


def test_every_error_of_opening_is_one_of_ours(tmp_path):
    for data in ("", "nothing:here", "hf:", "wds:", "coco:", "parquet:", f"{tmp_path}/\0"):
        with pytest.raises(BeholderError):
            open_images(data)
