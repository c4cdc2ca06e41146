"""Each curator by itself: exact answers, and faults that were planted in files and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import cdist
from study.world import MODEL, draw

from beholder.core.errors import ArgumentError, DataError
from beholder.core.features import Features
from beholder.core.images import Images
from beholder.curate import curate
from beholder.data.curate.base import resolve_budget, split_budget
from beholder.data.curate.copies import Duplicates, best_of_group, equal_pictures
from beholder.data.curate.k_centre import KCentre, k_centre
from beholder.data.curate.label_errors import LabelErrors, label_issues, plant
from beholder.data.curate.outliers import Outliers, improbable, photographs, rejected, shuffled
from beholder.data.curate.random import Random
from beholder.data.sources import open_images
from beholder.models.open import open_vision
from beholder.train.cross_fit import CrossFit

DIGITS = open_images("digits")
PIXELS = np.stack([sample["image"][..., 0].ravel() for sample in DIGITS]).astype(np.float32)


# budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "n", "kept"), [(0.5, 3, 2), (0.5, 5, 3), (0.001, 10, 1), (1.0, 7, 7), (7, 7, 7)]
)
def test_shares_are_rounded_half_up_and_never_to_nothing(budget: float, n: int, kept: int) -> None:
    assert resolve_budget(budget, n) == kept


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_classes_share_a_budget_exactly_and_in_proportion(
    labels: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(labels)))
    share = split_budget(np.array(labels), count)
    assert sum(share.values()) == count
    for label, got in share.items():
        exact = count * labels.count(label) / len(labels)
        assert got in (int(np.floor(exact)), int(np.floor(exact)) + 1)
        assert got <= labels.count(label)


# random ------------------------------------------------------------------------------------------


def test_random_per_class_keeps_the_shares_of_the_classes() -> None:
    few = DIGITS.where(pl.col("id") < "digits-0333")
    kept = Random(per_class=True).curate(few, budget=0.1).apply(few)
    before = few.table.group_by("label").len("n")
    after = kept.table.group_by("label").len("m")
    both = before.join(after, on="label")
    assert ((both["n"] * len(kept) / len(few) - both["m"]).abs() < 1).all()


def test_random_needs_a_budget() -> None:
    with pytest.raises(ArgumentError, match="needs a budget"):
        Random().curate(DIGITS)


def test_a_smaller_random_choice_is_part_of_a_larger_one() -> None:
    few = DIGITS.where(pl.col("id") < "digits-0200")
    small, large = (set(Random().curate(few, budget=n).worst("kept", n)["id"]) for n in (9, 50))
    assert len(small) == 9
    assert small < large


# k-centre ----------------------------------------------------------------------------------------


def test_centres_on_a_line_by_hand() -> None:
    x = np.array([[0.0], [1.0], [10.0], [4.0], [9.0]])
    chosen, nearest, gap = k_centre(x, 3)
    assert chosen.tolist() == [0, 2, 3]
    assert nearest.tolist() == [0, 0, 1, 2, 1]
    np.testing.assert_allclose(gap, [np.inf, 1, 10, 4, 1])


def test_equal_images_are_all_chosen_once() -> None:
    chosen, _, _ = k_centre(np.ones((4, 2)), 4)
    assert sorted(chosen.tolist()) == [0, 1, 2, 3]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(0, 1000), st.data())
def test_the_greedy_radius_is_within_twice_that_of_any_choice(
    n: int, seed: int, data: st.DataObject
) -> None:
    x = np.random.default_rng(seed).normal(size=(n, 3))
    count = data.draw(st.integers(1, n - 1))
    distance = cdist(x, x)
    chosen, nearest, gap = k_centre(x, count)
    radius = distance[:, chosen].min(1).max()
    rest = np.setdiff1d(np.arange(n), chosen)
    np.testing.assert_allclose(gap[rest], distance[rest][:, chosen].min(1), atol=1e-6)
    np.testing.assert_allclose(distance[np.arange(n), chosen[nearest]][rest], gap[rest], atol=1e-6)
    other = np.random.default_rng(seed + 1).choice(n, count, replace=False)
    assert radius <= 2 * distance[:, other].min(1).max() + 1e-9


def test_k_centre_says_which_centre_stands_for_what_is_dropped() -> None:
    few = DIGITS.where(pl.col("id") < "digits-0050")
    manifest = KCentre().curate(few, budget=10, embeddings=PIXELS[:50])
    dropped = manifest.frame.filter(~pl.col("keep"))
    kept = manifest.frame.filter("keep")
    assert set(dropped["partner"]) <= set(kept["id"])
    assert kept["score"].min() >= dropped["score"].max()


def test_k_centre_without_embeddings_says_where_they_come_from() -> None:
    with pytest.raises(ArgumentError, match=r"beholder.curate\(data, 'k_centre'\)"):
        KCentre().curate(DIGITS, budget=10)


def test_embeddings_follow_the_rows_of_the_table() -> None:
    few = DIGITS.where(pl.col("id") < "digits-0050")
    turned = replace(few, table=few.table.reverse())
    one = KCentre().curate(few, budget=10, embeddings=PIXELS[:50])
    other = KCentre().curate(turned, budget=10, embeddings=PIXELS[:50][::-1])
    assert one.frame.equals(other.frame)


def test_the_model_gives_embeddings_where_none_are_given(images: Images) -> None:
    model = open_vision(MODEL, input_size=(32, 32))
    by_model = KCentre().curate(images, model, 10)
    own = model.features(model_input(images)).half().float().detach().numpy()
    given = KCentre().curate(images, budget=10, embeddings=own)
    assert by_model.frame["keep"].equals(given.frame["keep"])
    assert by_model.info["model"] == {"name": MODEL, "weights": model.weights_hash}


def model_input(images: Images):
    import torch

    pixels = np.stack([images.read(row) for row in range(len(images))])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


# duplicates --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def with_copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of stripes and blobs, three of them copied in three ways."""
    place = tmp_path_factory.mktemp("copies")
    rng = np.random.default_rng(0)
    for number in range(30):
        small = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(small).resize((120, 120), Image.Resampling.BICUBIC).save(
            place / f"{number:02d}.png"
        )
    first = Image.open(place / "05.png")
    first.save(place / "a.png", compress_level=1)
    Image.open(place / "06.png").save(place / "b.jpg", quality=75)
    Image.open(place / "07.png").resize((60, 60), Image.Resampling.LANCZOS).save(place / "c.png")
    return place


def test_of_copies_the_largest_stays_and_the_others_name_it(with_copies: Path) -> None:
    images = open_images(with_copies)
    manifest = Duplicates().curate(images)
    dropped = manifest.frame.filter(~pl.col("keep"))
    partner = dict(dropped.select("id", "partner").iter_rows())
    assert partner == {"05.png": "a.png", "b.jpg": "06.png", "c.png": "07.png"} or partner == {
        "a.png": "05.png",
        "b.jpg": "06.png",
        "c.png": "07.png",
    }
    assert manifest.frame["group"].count() == 6
    assert (dropped["score"] == 0).all()
    assert manifest.report().self_test.recall.estimate > 0.5


def test_the_best_of_a_group_has_most_pixels_then_most_bytes_then_the_least_id() -> None:
    facts = pl.DataFrame(
        {
            "id": ["a", "b", "c", "d", "e", "f"],
            "width": [10, 20, 10, 10, 10, 10],
            "height": [10, 10, 10, 10, 10, 10],
            "file_size": [9, 1, 5, 7, 5, 5],
        }
    )
    group = np.array([0, 0, 1, 1, 2, 2])
    assert best_of_group(group, facts).tolist() == [1, 1, 3, 3, 4, 4]
    assert best_of_group(np.full(6, -1), facts).tolist() == list(range(6))
    assert equal_pictures(np.array(["x", "y", "x", "z", "y"])).tolist() == [0, 1, 0, -1, 1]


def test_where_images_look_alike_only_equal_ones_are_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = np.asarray(draw(3, 0, 96)).astype(float)
    for number in range(60):
        noisy = (base + rng.normal(0, 1, base.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / f"{number:02d}.png")
    Image.open(tmp_path / "07.png").save(tmp_path / "same.png", compress_level=1)
    manifest = Duplicates().curate(open_images(tmp_path))
    assert manifest.frame["keep"].sum() == 60
    assert "Only equal pictures are dropped: 1." in manifest.info["finding"]
    assert manifest.report().self_test.found == 0


def test_the_same_picture_under_two_labels_is_told(tmp_path: Path) -> None:
    for number in range(6):
        for name in ("one", "two"):
            (tmp_path / name).mkdir(exist_ok=True)
            draw(1 if name == "one" else 2, number).save(tmp_path / name / f"{number}.png")
    draw(1, 3).save(tmp_path / "two" / "wrong.png")
    manifest = Duplicates().curate(open_images(tmp_path))
    assert "1 have another label than the one kept." in manifest.info["finding"]
    assert manifest.worst()["detail"].str.contains("under another label").any()


# label errors ------------------------------------------------------------------------------------


def answers(dataset: Images, seed: int = 0) -> CrossFit:
    """Cross-fitted on pixels; rows sorted by id, as `Curator.curate` asks for."""
    labels = dataset.table["label"].to_numpy()
    soft = np.eye(10, dtype=np.float32)[labels]
    rows = [int(id.removeprefix("digits-")) for id in dataset.table["id"]]
    return CrossFit(Features.of(PIXELS[rows]), labels, soft, np.arange(len(labels)), seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_labels_are_found_and_the_self_test_does_not_flatter(seed: int) -> None:
    few = DIGITS.where(pl.col("id") < "digits-1000")
    labels, rows = few.table["label"].to_numpy(), np.arange(len(few))
    wrong, flipped = plant(labels, rows, rows, 0.05, seed)
    planted = replace(few, table=few.table.with_columns(label=pl.Series(wrong, dtype=pl.Int32)))
    manifest = LabelErrors().curate(planted, seed=seed, probabilities=answers(planted, seed))
    found = manifest.frame.filter(pl.col("reason") == "label_error")
    ids = few.table["id"].gather(flipped.tolist())
    recall = found["id"].is_in(ids.implode()).sum() / len(flipped)
    assert recall > 0.6
    told = manifest.info["self_test"][0]
    assert told["planted"] == len(flipped) == 50
    assert 0.4 < told["found"] / told["planted"] <= recall + 0.1
    right = found.filter(pl.col("id").is_in(ids.implode()))
    given = dict(zip(few.table["id"], labels, strict=True))
    assert (
        np.mean([given[id] == label for id, label in right.select("id", "label").iter_rows()]) > 0.8
    )
    most = float(manifest.info["finding"].split("at most ")[1].split("%")[0]) / 100
    assert most >= 0.05


def test_uncertain_labels_are_never_errors() -> None:
    few = DIGITS.where(pl.col("id") < "digits-0200")
    believed = np.full((200, 10), 0.01)
    believed[np.arange(200), few.table["label"]] = 0.91
    believed[:20] = np.roll(believed[:20], 1, 1)
    sure = LabelErrors().curate(few, probabilities=believed)
    assert sure.frame["keep"].to_list() == [False] * 20 + [True] * 180
    q = [np.eye(10)[label] * 0.6 + 0.04 for label in few.table["label"][:10]]
    unsure = [*(row.tolist() for row in q), *[None] * 190]
    table = few.table.with_columns(q=pl.Series(unsure, dtype=pl.List(pl.Float32)))
    some = LabelErrors().curate(replace(few, table=table), probabilities=believed)
    assert some.frame["keep"].to_list() == [True] * 10 + [False] * 10 + [True] * 180
    assert some.frame["detail"][0].startswith("The label is uncertain")
    assert some.frame["detail"][10].startswith("Labelled ")


def test_classes_of_few_images_are_not_judged() -> None:
    rows = pl.col("label").is_in([0, 1]) & (pl.col("id") < "digits-0200")
    few = DIGITS.where(rows | (pl.col("id") == "digits-0002"))
    believed = np.tile(np.eye(10)[0], (len(few), 1))
    manifest = LabelErrors().curate(few, probabilities=believed)
    kept = dict(manifest.frame.select("id", "keep").iter_rows())
    assert kept["digits-0002"]


def test_a_model_that_knows_nothing_is_said_to_be_too_weak() -> None:
    few = DIGITS.where(pl.col("id") < "digits-0300")
    flat = np.full((300, 10), 0.1)
    manifest = LabelErrors().curate(few, probabilities=flat)
    assert "too weak to judge labels" in manifest.info["finding"]


def test_equal_pictures_with_two_labels_are_certain_errors(tmp_path: Path) -> None:
    for name, digit in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        for number in range(12):
            draw(digit, number).save(tmp_path / name / f"{number}.png")
    for number in range(2):
        draw(1, number).save(tmp_path / "two" / f"copy{number}.png")
    manifest = curate(tmp_path, "label_errors", MODEL)
    assert (
        "4 images are there again under another label: certain errors."
        in (manifest.info["finding"])
    )


def test_flips_are_of_whole_units_and_to_another_class() -> None:
    labels = np.repeat([0, 1, 2], 20)
    unit = np.arange(60) // 2
    planted, flipped = plant(labels, np.arange(10, 60), unit, 0.1, seed=0)
    assert (planted[flipped] != labels[flipped]).all()
    assert (np.delete(planted, flipped) == np.delete(labels, flipped)).all()
    assert flipped.min() >= 10
    assert len(flipped) in (5, 6)
    assert np.isin(unit, unit[flipped]).sum() == len(flipped)


def test_issues_are_those_of_cleanlab() -> None:
    from cleanlab.filter import find_label_issues

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    probability = rng.dirichlet(np.ones(3), 200) + 2 * np.eye(3)[labels]
    probability[:10] = np.roll(probability[:10], 1, 1)
    probability /= probability.sum(1, keepdims=True)
    expected = find_label_issues(labels, probability, filter_by="both")
    assert label_issues(labels, probability).tolist() == expected.tolist()
    assert expected.any()
    absent = np.hstack([probability, np.full((200, 1), 1e-3)])
    assert label_issues(labels, absent / absent.sum(1, keepdims=True)).sum() == expected.sum()


def test_out_of_sample_answers_do_not_know_the_label_of_the_image_itself() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    soft = np.eye(2, dtype=np.float32)[labels]
    made = CrossFit(
        Features.of(rng.normal(size=(200, 400)).astype(np.float32)), labels, soft, np.arange(200), 0
    )
    found = made(np.where(np.arange(200) < 5, -1, labels))
    assert np.isnan(found[:5]).all()
    np.testing.assert_allclose(found[5:].sum(1), 1, atol=1e-5)
    assert abs((found[5:].argmax(1) == labels[5:]).mean() - 0.5) < 0.15


# outliers ----------------------------------------------------------------------------------------


def test_a_strange_image_is_found_and_said_how_far_it_is() -> None:
    few = DIGITS.where(pl.col("id") < "digits-0300")
    x = PIXELS[:300].copy()
    x[[5, 17]] = np.random.default_rng(0).uniform(0, 1500, (2, 64))
    manifest = Outliers().curate(few, embeddings=x)
    assert manifest.worst(n=2)["id"].sort().to_list() == ["digits-0005", "digits-0017"]
    assert manifest.worst(n=1)["detail"][0].endswith("times as far from its neighbours as usual.")
    assert manifest.frame["keep"].sum() > 290
    assert manifest.report().self_test is None


def test_normal_data_has_hardly_any_outlier() -> None:
    flagged = []
    for seed in range(10):
        usual = np.exp(np.random.default_rng(seed).normal(size=500))
        flagged.append(rejected(improbable(usual, usual), 0.1).sum())
    assert np.mean(flagged) < 1


def test_improbable_is_the_upper_tail_of_the_logarithms() -> None:
    usual = np.exp(np.random.default_rng(0).normal(2, 0.5, 200_000))
    p = improbable(np.exp([2, 2 + 1.96 * 0.5]), usual)
    np.testing.assert_allclose(p, [0.5, 0.025], atol=0.005)


def test_a_copy_is_no_neighbour_of_an_outlier(tmp_path: Path) -> None:
    for number in range(60):
        draw(1, number).save(tmp_path / f"{number:02d}.png")
    strange = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for number in range(12):
        Image.fromarray(strange).save(tmp_path / f"strange{number:02d}.png")
    images = open_images(tmp_path)
    x = np.stack([images.read(row).ravel() for row in range(len(images))]).astype(float)
    manifest = Outliers().curate(images, embeddings=x)
    assert manifest.worst(n=12)["id"].str.starts_with("strange").sum() == 12


def test_shuffled_images_have_the_same_pixels_elsewhere() -> None:
    image = np.arange(16 * 16 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)
    mixed = shuffled(image, np.random.default_rng(0))
    assert mixed.shape == image.shape
    assert not np.array_equal(mixed, image)
    assert sorted(mixed[..., 0].ravel()) == sorted(image[..., 0].ravel())
    assert shuffled(image[:3, :2], np.random.default_rng(0)).shape == (3, 2, 3)
    assert all(p.shape[0] == p.shape[1] >= 120 for p in photographs(5, np.random.default_rng(0)))


def test_few_images_have_no_outliers(images: Images) -> None:
    few = images.where(pl.col("id").str.contains("one"))
    manifest = Outliers().curate(few, embeddings=np.eye(len(few)))
    assert manifest.frame["keep"].all()
    assert "too few to say" in manifest.info["finding"]


# the verb ----------------------------------------------------------------------------------------


def test_the_verb_finds_what_was_planted_in_files(place: Path) -> None:
    import beholder

    manifest = beholder.curate(place, "outliers", MODEL)
    assert [trial["planted"] for trial in manifest.info["self_test"]] == [4, 4, 4]
    assert manifest.info["fingerprint"] == manifest.images.fingerprint(hashes(manifest.images))
    assert manifest.info["model"]["name"] == MODEL


def hashes(images: Images) -> dict[str, str]:
    import hashlib

    table = images.table
    return {
        id: hashlib.blake2b(images.store.read(key), digest_size=16).hexdigest()
        for id, key in table.select("id", "key").iter_rows()
    }


def test_an_unknown_method_or_option_is_an_error_that_shows_the_known(images: Images) -> None:
    with pytest.raises(ArgumentError, match="label_errors"):
        curate(images, "label_error")
    with pytest.raises(ArgumentError, match="per-class"):
        curate(images, "random", budget=3, per_clas=True)


def test_labels_are_missed_before_anything_is_computed(tmp_path: Path) -> None:
    draw(0, 0).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="label_errors needs labels"):
        curate(tmp_path, "label_errors", "no_such_model")
