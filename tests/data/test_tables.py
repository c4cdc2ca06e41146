"""Tables of images: encodings, columns by their roles, errors that name the row."""

import numpy as np
import polars as pl
import pytest
from planted_files import encoded, picture

from beholder.core.errors import AmbiguousDataError, ArgumentError, DataError
from beholder.core.images import certainty
from beholder.data.sources import open_images

NAMES = [f"{number}.png" for number in range(4)]


@pytest.fixture
def folder(tmp_path):
    """Four images and no table."""
    root = tmp_path / "data"
    root.mkdir()
    for number, name in enumerate(NAMES):
        (root / name).write_bytes(encoded(picture(8, seed=number), "PNG"))
    return root


@pytest.fixture
def open_table(folder):
    """Write `text` as labels.csv into the folder and open the folder."""

    def write(text, name="labels.csv", **options):
        data = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(data)
        return open_images(folder, **options)

    return write


def column(name, values):
    """A CSV text of the four images with one more column."""
    return f"path,{name}\n" + "".join(f"{p},{v}\n" for p, v in zip(NAMES, values, strict=True))


def labels(images):
    return [None if i is None else images.classes[i] for i in images.table["label"]]


PLAIN = "path,label\n0.png,b\n1.png,a\n2.png,b\n3.png,a\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.encode("utf-16"),
        PLAIN.replace("path,label", " Path ,LABEL").encode(),
        PLAIN.replace("path,label", "file_name,class").encode(),
        PLAIN.rstrip("\n").encode(),
    ],
    ids=["plain", "BOM", "CRLF", "semicolon", "UTF-16", "case", "aliases", "no last line feed"],
)
def test_a_csv_is_read_however_it_was_written(open_table, data):
    images = open_table(data)
    assert (images.format, images.kind, images.classes) == ("table", "classes", ("a", "b"))
    assert labels(images) == ["b", "a", "b", "a"]


def test_a_table_is_read_as_tsv_jsonl_parquet_and_arrow_too(folder):
    frame = pl.DataFrame({"path": NAMES, "label": ["b", "a", "b", "a"]})
    frame.write_csv(folder / "t.tsv", separator="\t")
    frame.write_ndjson(folder / "t.jsonl")
    frame.write_parquet(folder / "t.parquet")
    frame.write_ipc(folder / "t.arrow", compression="uncompressed")
    for suffix in ("tsv", "jsonl", "parquet", "arrow"):
        assert labels(open_images(folder / f"t.{suffix}")) == ["b", "a", "b", "a"]


def test_the_layout_of_imagefolder_with_metadata_is_read(folder):
    rows = "".join(f'{{"file_name": "{p}", "label": {n % 2}}}\n' for n, p in enumerate(NAMES))
    (folder / "metadata.jsonl").write_text(rows)
    assert labels(open_images(folder)) == ["0", "1", "0", "1"]


def test_latin_letters_without_utf8_are_understood(open_table):
    images = open_table(column("label", ["été", "a", "a", "a"]).encode("cp1252"))
    assert images.classes == ("a", "été")


def test_quoted_line_feeds_and_separators_belong_to_the_cell(open_table):
    images = open_table('path,label,comment\n0.png,"x, y","one\ntwo"\n1.png,z,"a ""b"""\n')
    assert labels(images) == ["x, y", "z"]


def test_extra_columns_are_ignored_and_odd_names_kept(open_table):
    images = open_table("path,label,colour,n\n0.png,01,red,3\n1.png,1,blue,4\n")
    assert images.classes == ("01", "1")
    assert images.groups == []


def test_duplicate_rows_are_skipped_and_a_contradiction_is_told(open_table):
    images = open_table(PLAIN + "0.png,b\n./1.png,b\n")
    assert len(images) == 4
    assert images.skipped.rows() == [
        ("0.png", "duplicate_row", "row 5 repeats row 1"),
        ("1.png", "duplicate_row", "row 6 repeats row 2, with another label: a, b"),
    ]


def test_missing_files_and_labels_are_skipped_with_their_reasons(open_table):
    images = open_table("path,label\n0.png,a\n1.png,b\n2.png,\ngone.png,a\n,b\n3.png,a\n")
    assert len(images) == 3
    assert dict(images.skipped.select("path", "reason").iter_rows()) == {
        "gone.png": "missing_file",
        "row 5": "missing_file",
        "2.png": "label_missing",
    }


def test_more_than_half_missing_is_an_error_with_three_examples_and_a_guess(folder):
    table = folder.parent / "labels.csv"
    table.write_text(PLAIN)
    with pytest.raises(DataError) as caught:
        open_images(table)
    assert "4 of 4 files named in labels.csv are missing" in str(caught.value)
    assert "0.png, 1.png, 2.png." in str(caught.value)
    assert caught.value.hint == "Did you mean --root data/?"
    assert len(open_images(table, root=folder)) == 4


def test_the_guess_looks_above_too(folder):
    (folder / "tables").mkdir()
    (folder / "tables" / "t.csv").write_text(PLAIN)
    with pytest.raises(DataError, match=r"--root \.\.\?"):
        open_images(folder / "tables" / "t.csv")


def test_exactly_half_missing_is_not_an_error(open_table):
    assert len(open_table("path,label\n0.png,a\n1.png,b\nx.png,a\ny.png,b\n")) == 2


def test_paths_that_lead_out_are_read_with_a_note_and_never_shown_absolute(folder):
    table = folder / "sub" / "t.csv"
    table.parent.mkdir()
    table.write_text(f"path,label\n../0.png,a\n{folder / '1.png'},b\n")
    images = open_images(table)
    assert images.table["path"].to_list() == ["../0.png", "../1.png"]
    assert "2 paths lead out of sub; they are only read" in images.notes
    assert (images.read(1) == picture(8, seed=1)).all()


def test_backslashes_of_other_systems_are_understood(folder):
    (folder / "in").mkdir()
    (folder / "0.png").rename(folder / "in" / "0.png")
    (folder / "t.csv").write_text("path,label\nin\\0.png,a\n1.png,b\n")
    assert open_images(folder / "t.csv").table["id"].to_list() == ["in/0.png", "1.png"]


# Label forms


def test_a_probability_is_that_of_the_second_class(open_table):
    images = open_table(column("probability", [0, 0.25, 0.5, 1]), classes=["good", "defect"])
    assert images.classes == ("good", "defect")
    assert labels(images) == ["good", "good", None, "defect"]
    assert images.table["q"].to_list() == [[1, 0], [0.75, 0.25], [0.5, 0.5], [0, 1]]
    assert any("1 labels are exact ties" in note for note in images.notes)
    q = np.array(images.table["q"].to_list())
    assert certainty(q).tolist() == [1, 0.5, 0, 1]


def test_a_probability_without_classes_gets_names_and_a_note(open_table):
    images = open_table(column("probability", [0, 0, 1, 1]))
    assert images.classes == ("negative", "positive")
    assert any("--classes" in note for note in images.notes)


@pytest.mark.parametrize(
    ("value", "words"), [("1.2", "probability 1.2"), ("x", "'x'"), ("inf", "inf")]
)
def test_an_impossible_probability_names_its_row(open_table, value, words):
    with pytest.raises(DataError, match=f"Row 3: .*{words}"):
        open_table(column("probability", [0, 1, value, 0]))


def test_decimal_commas_are_understood(open_table):
    images = open_table(
        column("probability", ["0,25"] * 4).replace("png,", "png;").replace("h,", "h;")
    )
    assert images.table["q"][0].to_list() == [0.75, 0.25]


def test_one_column_per_class_is_a_distribution(open_table):
    images = open_table("path,p_a,p_B\n0.png,.2,.8\n1.png,.7,.3\n2.png,.5,.48\n")
    assert images.classes == ("a", "B")
    assert labels(images) == ["B", "a", "a"]
    assert images.table["q"][2].to_list() == pytest.approx([0.5 / 0.98, 0.48 / 0.98])
    assert "1 rows of shares did not sum to 1 and were normalised" in images.notes


def test_shares_that_are_no_distribution_name_their_row(open_table):
    with pytest.raises(DataError, match=r"Row 2: the shares 0\.3, 0\.4 sum to 0\.7"):
        open_table("path,p_a,p_b\n0.png,.2,.8\n1.png,.3,.4\n")
    with pytest.raises(DataError, match="Row 1: some of p_a, p_b are empty"):
        open_table("path,p_a,p_b\n0.png,.2,\n")


def test_several_labels_are_read_from_texts_and_from_lists(open_table, folder):
    from_text = open_table(column("labels", ["b|a", "a", "", "b| a |b"]))
    frame = pl.DataFrame({"path": NAMES, "labels": [["b", "a"], ["a"], [], ["b", "a"]]})
    frame.write_parquet(folder / "t.parquet")
    for images in (from_text, open_images(folder / "t.parquet")):
        assert (images.kind, images.classes) == ("multilabel", ("a", "b"))
        assert images.table["labels"].to_list() == [[0, 1], [0], [], [0, 1]]


def test_integers_keep_their_names_in_natural_order(open_table, folder):
    assert open_table(column("label", [10, 9, 2, 10])).classes == ("2", "9", "10")
    pl.DataFrame({"path": NAMES, "label": [10.0, 9.0, 2.5, 10.0]}).write_parquet(
        folder / "t.parquet"
    )
    assert open_images(folder / "t.parquet").classes == ("2.5", "9", "10")


def test_a_table_without_labels_is_unlabelled_and_one_class_is_one(open_table):
    assert open_table("path\n0.png\n1.png\n").kind == "unlabelled"
    assert open_table(column("label", ["a"] * 4)).kind == "one_class"


def test_two_columns_that_could_be_the_label_are_an_error(open_table):
    text = "path,label,probability\n0.png,a,1\n1.png,b,0\n"
    with pytest.raises(
        AmbiguousDataError, match="--label-column label or --label-column probability"
    ):
        open_table(text)
    assert labels(open_table(text, label_column="label")) == ["a", "b"]
    assert open_table(text, label_column="Probability").table["q"].null_count() == 0


def test_label_wins_over_its_aliases_which_alone_clash(open_table):
    assert open_table("path,label,class\n0.png,a,x\n1.png,b,y\n").classes == ("a", "b")
    with pytest.raises(AmbiguousDataError, match="'class' and 'target'"):
        open_table("path,class,target\n0.png,a,x\n1.png,b,y\n")


def test_a_column_named_by_option_must_be_there(open_table):
    with pytest.raises(
        ArgumentError, match="--label-column kind: there is no such column"
    ) as caught:
        open_table(PLAIN, label_column="kind")
    assert "path, label" in caught.value.hint


@pytest.fixture
def measured(folder):
    """A table of 100 rows with 60 different numbers."""
    for number in range(100):
        (folder / f"{number}.png").write_bytes(encoded(picture(4, seed=number), "PNG"))
    values = [-30 + number % 60 for number in range(100)]
    frame = pl.DataFrame({"path": [f"{n}.png" for n in range(100)], "label": values})
    frame.write_csv(folder / "labels.csv")
    return folder


def test_measurements_are_refused_as_labels(measured):
    with pytest.raises(ArgumentError) as caught:
        open_images(measured)
    assert "label has 60 different numbers; beholder judges classes." in str(caught.value)
    assert "Bin it with --bins 5 or name another column" in caught.value.hint


def test_bins_make_classes_of_equal_size_in_order(measured):
    images = open_images(measured, bins=4)
    assert len(images.classes) == 4
    assert images.classes[0].startswith("1: -30 to ")
    assert images.table["label"].value_counts()["count"].to_list() == pytest.approx([25] * 4, abs=3)


def test_fifty_numbers_or_a_fifth_are_still_classes(measured):
    frame = pl.read_csv(measured / "labels.csv").with_columns(pl.col("label") % 50)
    frame.write_csv(measured / "labels.csv")
    assert open_images(measured).kind == "classes"


def test_bins_of_words_are_refused(open_table):
    with pytest.raises(ArgumentError, match="does not hold numbers"):
        open_table(PLAIN, bins=3)


# Other columns


def test_group_columns_keep_their_names(open_table):
    images = open_table("path,label,group,Group_Site\n0.png,a,x,s\n1.png,b,y,\n")
    assert images.groups == ["group", "Site"]
    assert images.table["group_Site"].to_list() == ["s", None]


def test_source_aliases_count_only_where_named(open_table):
    text = "path,label,patient\n0.png,a,p1\n1.png,b,p1\n"
    images = open_table(text)
    assert (images.source_given, images.table["source"].null_count()) == (False, 2)
    assert any("--source-column patient" in note for note in images.notes)
    images = open_table(text, source_column="patient")
    assert (images.source_given, images.table["source"].to_list()) == (True, ["p1", "p1"])


def test_split_words_are_trimmed_and_translated(open_table):
    images = open_table(column("split", ["Train ", "dev", "EVAL", ""]))
    assert images.table["split"].to_list() == ["train", "val", "test", None]


def test_an_unknown_split_word_lists_the_known(open_table):
    with pytest.raises(DataError, match="Row 2: the split 'fold1' is not known") as caught:
        open_table(column("split", ["train", "fold1", "test", "test"]))
    assert "validation" in caught.value.hint


def test_weights_are_numbers_from_zero(open_table):
    assert open_table(column("weight", [0, 2.5, "", 1])).table["weight"].to_list() == [0, 2.5, 1, 1]
    with pytest.raises(DataError, match="Row 4: the weight -1 is negative"):
        open_table(column("weight", [0, 1, 1, -1]))


def test_ids_may_be_given_and_must_be_unique(open_table):
    assert open_table(column("id", "abcd")).table["id"].to_list() == list("abcd")
    with pytest.raises(DataError, match="Two images have the id 'a'"):
        open_table(column("id", "abca"))
    with pytest.raises(DataError, match="Row 2: the id is empty"):
        open_table(column("id", ["a", "", "c", "d"]))


# Tables that are none


@pytest.mark.parametrize(
    "text",
    ["", "\n", "path,label\n", "label,colour\na,b\n", 'path,label\n"0.png,a\n', "a\x00b\n"],
    ids=["empty", "blank", "header only", "no path", "open quote", "NUL"],
)
def test_a_table_that_is_none_is_a_data_error(folder, text):
    (folder / "t.csv").write_text(text)
    with pytest.raises(DataError):
        open_images(folder / "t.csv")


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl"])
def test_a_broken_file_is_a_data_error(folder, suffix):
    (folder / f"t.{suffix}").write_bytes(b"{broken")
    with pytest.raises(DataError):
        open_images(folder / f"t.{suffix}")


def test_the_same_column_twice_is_an_error(open_table):
    with pytest.raises(AmbiguousDataError, match="'label' and 'Label'"):
        open_table("path,label,Label\n0.png,a,b\n")
