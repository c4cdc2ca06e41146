"""The exact index: as brute force, whatever happens to it in between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from study.world import cli, folders

import beholder
from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.files import write_json
from beholder.data.sources import open_images
from beholder.models.open import open_vision
from beholder.retrieve.base import Retriever
from beholder.retrieve.embed import VisionEncoder
from beholder.retrieve.exact import Exact, ExactIndex
from beholder.retrieve.query import Query, matching, spatial_distance

MODEL = "untrained:test_resnet"


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return VisionEncoder(open_vision(MODEL))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_images(folders(tmp_path_factory.mktemp("data"), ["zero", "one", "two"], 6))


@pytest.fixture
def index(data, encoder, tmp_path) -> ExactIndex:
    return Exact().index(data, encoder, tmp_path / "index")


class Fixed:
    """An encoder of vectors that are already there."""

    name, modalities, fingerprint = "fixed", frozenset({"image", "text"}), "fixed"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def encode_image(self, images) -> torch.Tensor:
        flat = [
            torch.from_numpy(image.reshape(-1)[: self.dim].astype(np.float32)) for image in images
        ]
        return torch.nn.functional.normalize(torch.stack(flat), dim=1)

    def encode_text(self, texts) -> torch.Tensor:
        return torch.eye(self.dim)[[len(text) % self.dim for text in texts]]


def synthetic(place: Path, rows: int, dim: int) -> ExactIndex:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(rows, 1, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    table = pl.DataFrame({"id": [f"{i:05d}" for i in range(rows)]}).with_columns(
        pl.Series("label", [["odd", "it's; DROP TABLE"][i % 7 == 0] for i in range(rows)])
    )
    return ExactIndex(place, "fixed", 1, table, vectors)


def test_it_is_brute_force(tmp_path):
    index, encoder = synthetic(tmp_path, 5000, 64), Fixed(64)
    question = np.random.default_rng(1).normal(size=64)
    hits = Exact().find(index, Query(vector=question, k=25), encoder)
    similarity = index.vectors[:, 0] @ (question / np.linalg.norm(question))
    order = np.argsort(-similarity)[:25]
    assert hits.ids == [f"{i:05d}" for i in order]
    np.testing.assert_allclose(hits.table["similarity"], similarity[order], atol=1e-5)
    assert hits.table["rank"].to_list() == list(range(1, 26))


def test_a_filter_comes_before_the_search_and_its_value_is_data(tmp_path):
    index, encoder = synthetic(tmp_path, 700, 8), Fixed(8)
    where = {"label": "it's; DROP TABLE"}
    hits = Exact().find(index, Query(vector=np.ones(8), where=where, k=100), encoder)
    assert len(hits) == 100
    assert all(int(id) % 7 == 0 for id in hits.ids)


def test_an_image_finds_itself_first(index, data, encoder):
    for row in (0, 7, 17):
        hits = Exact().find(index, Query(image=data.read(row)), encoder)
        assert hits.ids[0] == data.table["id"][row]
        assert hits.table["similarity"][0] == pytest.approx(1, abs=1e-5)
    assert len(hits) == len(data) == len(index)


def test_insert_find_delete_and_open_again(index, data, encoder):
    exact = Exact()
    gone = data.table["id"][3]
    query = Query(image=data.read(3), k=1)
    assert index.delete([gone, "nobody"]) == 1
    assert exact.find(index, query, encoder).ids != [gone]
    again = exact.open(index.place)
    assert gone not in again.rows["id"]
    assert exact.find(again, query, encoder).ids != [gone]
    assert index.insert(data.where(data.table["id"] == gone), encoder) == 1
    assert exact.find(exact.open(index.place), query, encoder).ids == [gone]


def test_what_was_deleted_is_on_no_disk(index, data):
    vector = index.vectors[3, 0].tobytes()
    files = [path.read_bytes() for path in index.place.iterdir()]
    assert any(vector in content for content in files)
    index.delete([index.rows["id"][3]])
    assert not any(vector in path.read_bytes() for path in index.place.iterdir())


def test_inserting_again_replaces(index, data, encoder):
    before = {id: index.vectors[row, 0] for row, id in enumerate(index.rows["id"])}
    assert index.insert(data, encoder) == len(data)
    assert len(index) == len(data)
    for row, id in enumerate(index.rows["id"]):
        np.testing.assert_allclose(index.vectors[row, 0], before[id], atol=1e-6)


def test_a_killed_write_leaves_the_index_as_it_was(index, data, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("beholder.retrieve.exact.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        index.delete(data.table["id"].to_list()[:5])
    again = Exact().open(index.place)
    assert len(again) == len(again.vectors) == len(data)
    monkeypatch.setattr("beholder.retrieve.exact.write_json", write_json)
    again.delete(data.table["id"].to_list()[:1])
    assert len(Exact().open(index.place)) == len(data) - 1


def test_another_encoder_is_refused_by_both_names(index, data):
    other = VisionEncoder(open_vision(MODEL, seed=1))
    with pytest.raises(ModelError) as error:
        Exact().find(index, Query(image=data.read(0)), other)
    assert other.fingerprint[:12] in str(error.value)
    assert index.fingerprint[:12] in str(error.value)
    with pytest.raises(ModelError, match="was made by the encoder"):
        index.insert(data, other)


def test_images_that_cannot_be_used_are_skipped_and_listed(tmp_path, encoder):
    place = folders(tmp_path / "data", ["a", "b"], 2)
    (place / "a" / "broken.png").write_bytes(b"no image")
    index = Exact().index(open_images(place), encoder, tmp_path / "index")
    assert len(index) == 4
    assert index.skipped["id"].to_list() == ["a/broken.png"]


def test_images_whose_vector_has_no_direction_are_skipped(tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "black.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "data" / "white.png")
    index = Exact().index(open_images(tmp_path / "data"), Fixed(6), tmp_path / "index")
    assert index.rows["id"].to_list() == ["white.png"]
    assert "no direction" in index.skipped["reason"][0]


def test_an_empty_index_answers_with_nothing(index, data, encoder):
    index.delete(data.table["id"].to_list())
    assert not len(Exact().find(Exact().open(index.place), Query(image=data.read(0)), encoder))


def test_patches_find_an_image_by_a_part_of_it(tmp_path, encoder):
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(16, 0) for _ in range(6)]
    images = [image.repeat(16, 1) for image in images]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "data" / f"{number}.png")
    exact = Exact(spatial=3)
    index = exact.index(open_images(tmp_path / "data"), encoder, tmp_path / "index")
    assert index.vectors.shape == (6, 14, encoder.dim)
    whole = exact.find(index, Query(image=images[2]), encoder)
    assert whole.ids[0] == "2.png"
    assert whole.table["distance"][0] == pytest.approx(0, abs=1e-4)
    assert whole.table["distance"].is_sorted()
    asked = exact.open(tmp_path / "index")
    expected = [
        spatial_distance(index.vectors[2], index.vectors[index.rows["id"].to_list().index(id)])
        for id in whole.ids
    ]
    np.testing.assert_allclose(whole.table["distance"], expected, atol=1e-4)
    assert asked.spatial == 3


def test_distance_of_patches_by_hand_and_not_symmetric():
    query, reference = np.array([[0.0, 0], [1, 0]]), np.array([[0.0, 0], [0, 1]])
    assert spatial_distance(query, reference) == 0.5
    assert spatial_distance(query, query) == 0
    one = np.array([[0.0, 0]])
    assert spatial_distance(one, query) == 0
    assert spatial_distance(query, one) == 0.5


def test_parts_of_a_query_are_weighed_and_negatives_subtracted():
    encoder = Fixed(4)
    x, y = np.eye(4)[0], encoder.encode_text(["no"])[0].numpy()
    both = Query(vector=5 * x, text="no", weights={"text": 0.5}).vectors(encoder)
    np.testing.assert_allclose(both, (x + y / 2) / np.linalg.norm(x + y / 2), atol=1e-6)
    without = Query(vector=x, negative_text="no").vectors(encoder)
    np.testing.assert_allclose(without, (x - y) / np.sqrt(2), atol=1e-6)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(), "is empty"),
        (Query(text=""), "is empty"),
        (Query(negative_text="no"), "is empty"),
        (Query(vector=np.ones(3)), "does not fit"),
        (Query(vector=np.zeros(4)), "no direction"),
        (Query(vector=np.full(4, np.nan)), "no direction"),
    ],
)
def test_what_asks_nothing_is_refused(query, said):
    with pytest.raises(ArgumentError, match=said):
        query.vectors(Fixed(4))


def test_an_unknown_column_names_its_neighbours():
    with pytest.raises(ArgumentError, match=r"no column 'lable'[\s\S]*label"):
        matching(pl.DataFrame({"id": ["a"], "label": ["b"]}), {"lable": "b"})


def test_places_that_cannot_be_are_refused(index, data, encoder, tmp_path):
    with pytest.raises(ArgumentError, match="not empty"):
        Exact().index(data, encoder, index.place)
    with pytest.raises(DataError, match="no readable index"):
        Exact().open(tmp_path / "nowhere")
    next(index.place.glob("vectors-*")).write_bytes(b"torn")
    with pytest.raises(DataError, match="no readable index"):
        Exact().open(index.place)
    with pytest.raises(ArgumentError, match="--k = 0"):
        Exact().search(index, Query(image=data.read(0), k=0), encoder)
    with pytest.raises(ArgumentError, match="spatial"):
        Exact(spatial=0)
    assert issubclass(Exact, Retriever)


def test_verbs_in_python_make_and_ask_an_index(data, tmp_path):
    beholder.index(data, tmp_path / "index", MODEL)
    hits = beholder.find(tmp_path / "index", data.read(4), k=2)
    assert hits.ids[0] == data.table["id"][4]
    given = open_vision(MODEL)
    beholder.index(data, tmp_path / "given", given)
    with pytest.raises(ArgumentError, match="no name"):
        beholder.find(tmp_path / "given", data.read(4))
    assert beholder.find(tmp_path / "given", data.read(4), given, k=2).ids == hits.ids


def test_commands_make_and_ask_an_index(tmp_path, monkeypatch, capsys):
    place = folders(tmp_path / "data", ["zero", "one"], 4)
    index = str(tmp_path / "index")
    assert not cli(["index", str(place), "--out", index, "--model", MODEL], monkeypatch)
    assert capsys.readouterr().out.startswith("8 images in ")
    asked = place / "zero" / "zero_002.png"
    assert not cli(["find", index, str(asked), "-k", "3"], monkeypatch)
    said = capsys.readouterr().out
    assert said.startswith("3 hits; the nearest is zero/zero_002.png, at a cosine of 1.000")
    assert not cli(["find", index, str(asked), "--where", "label=one", "--json"], monkeypatch)
    hits = json.loads(capsys.readouterr().out)
    assert {hit["label"] for hit in hits} == {"one"}
    assert cli(["find", index, "a round thing"], monkeypatch) == 2
    assert "no text tower" in capsys.readouterr().err
    assert cli(["find", index, str(asked), "--where", "label"], monkeypatch) == 2
    assert cli(["find", str(tmp_path / "none"), str(asked)], monkeypatch) == 3


def test_spatial_reaches_the_retriever_from_the_command(tmp_path, monkeypatch, capsys):
    place, index = tmp_path / "data", str(tmp_path / "index")
    place.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(place / f"{number}.png")
    words = ["index", str(place), "--out", index, "--model", MODEL, "--spatial", "2", "--json"]
    assert not cli(words, monkeypatch)
    assert json.loads(capsys.readouterr().out)["images"] == 3
    assert not cli(["find", index, str(place / "1.png"), "--json"], monkeypatch)
    first = json.loads(capsys.readouterr().out)[0]
    assert first["id"] == "1.png"
    assert first["distance"] == pytest.approx(0, abs=1e-4)
