"""The verb: from a model and images to maps, measures, pictures and a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from explain.conftest import small
from PIL import Image

import beholder
from beholder.cli.app import app
from beholder.core.errors import ArgumentError, DataError
from beholder.core.predictions import Explanation
from beholder.core.sections import Value
from beholder.explain.attribution.gradcam import GradCAM
from beholder.explain.explained import Explained, verdict
from beholder.explain.pages import page
from beholder.explain.targets import Neuron

MODEL = "untrained:test_resnet"


@pytest.fixture(scope="module")
def explained() -> Explained:
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    model = small("test_resnet")
    return beholder.explain(model, images, ["gradcam", "guided_gradcam"], steps=4)


def cli(*words: str) -> None:
    app(list(words), standalone_mode=False)


def test_every_method_has_a_map_and_a_row_per_image(explained: Explained):
    assert list(explained.explanations) == ["gradcam", "guided_gradcam"]
    assert explained["gradcam"].heatmap.shape == (2, 96, 96)
    assert len(explained.table) == 4
    measures = explained.table.select("deletion", "insertion_moved", "survives", "probability")
    assert not any(measures.null_count().row(0))


def test_the_measures_are_areas_of_probabilities_and_the_section_averages_them(
    explained: Explained,
):
    areas = explained.table["deletion"].to_numpy()
    assert ((areas > 0) & (areas < 1)).all()
    section = explained.section()
    mean = section.frame("methods").row(by_predicate=pl.col("method") == "gradcam", named=True)
    assert mean["deletion"] == pytest.approx(areas[:2].mean())
    gain = section.values["gradcam_deletion_gain"].estimate
    moved = explained.table["deletion_moved"].to_numpy()[:2].mean()
    assert gain == pytest.approx(moved - areas[:2].mean())


def test_the_same_call_gives_the_same_numbers():
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    first, second = (beholder.explain(small("test_resnet"), images, steps=3) for _ in "ab")
    assert first.table.equals(second.table)


def test_a_class_is_named_and_another_answer_is_said(explained: Explained):
    images, answers = explained.images, explained.table["predicted"].to_list()
    index = next(i for i, name in enumerate("abcdef") if name not in answers)
    found = beholder.explain(small("test_resnet"), images, target="abcdef"[index], steps=0)
    assert found["gradcam"].target.tolist() == [index, index]
    assert found.table["target"].to_list() == ["abcdef"[index]] * 2
    assert f"explained is {'abcdef'[index]}" in page(found)
    by_number = beholder.explain(small("test_resnet"), images, target=str(index), steps=0)
    assert by_number["gradcam"].target.tolist() == [index, index]


def test_imagenet_classes_are_named_in_words():
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found = beholder.explain(MODEL, image, target="goldfish", steps=0)
    assert found["gradcam"].target.tolist() == [1]
    assert found.table["target"].to_list() == ["goldfish"]
    with pytest.raises(ArgumentError, match=r"(?s)'crane' are several.*134, 517"):
        beholder.explain(MODEL, image, target="crane")


def test_a_unit_is_explained_without_probabilities(explained: Explained):
    found = beholder.explain(
        small("test_resnet"), explained.images, GradCAM("layer3"), Neuron("layer4", 1), steps=2
    )
    assert found.table["deletion"].null_count() == 2
    assert found.table["survives"].null_count() == 0
    assert "not measured" in found.section().finding


def test_a_run_directory_holds_pictures_table_and_page(explained: Explained, tmp_path: Path):
    where = explained.save(tmp_path)
    assert where == tmp_path / "explanations.html"
    picture = Image.open(tmp_path / "gradcam" / "1.png")
    assert picture.size == (96, 96)
    assert pl.read_parquet(tmp_path / "explanations.parquet").equals(explained.table)
    kept = json.loads((tmp_path / "explanations.json").read_text())
    assert kept["finding"] == explained.section().finding


def test_images_of_one_name_in_different_folders_keep_their_pictures(
    explained: Explained, tmp_path: Path
):
    named = Explained(
        explained.model,
        explained.images,
        ("a/x.png", "a_x.jpg"),
        explained.explanations,
        explained.table.with_columns(image=pl.Series(["a/x.png", "a_x.jpg"] * 2)),
    )
    named.save(tmp_path)
    assert len(list((tmp_path / "gradcam").iterdir())) == 2


def test_the_page_asks_for_nothing_and_shows_names_as_text(explained: Explained):
    evil = Explained(
        "<script>alert(1)</script>",
        explained.images,
        ("<img src=x>", "1"),
        explained.explanations,
        explained.table.with_columns(image=pl.Series(["<img src=x>", "1"] * 2)),
    )
    text = page(evil)
    assert "<script" not in text
    assert "<img src=x>" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/webp") == 2 * 3
    assert "alike for any weights" in text


def test_an_image_file_is_explained_at_the_command_line(tmp_path: Path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    out = tmp_path / "out"
    words = ["--method", "gradcam", "--counterfactual", "--target", "7", "--steps", "2"]
    cli("explain", MODEL, str(tmp_path / "cat.png"), *words, "--out", str(out))
    said = capsys.readouterr().out
    assert said.startswith("On 1 image, too few to judge by,")
    assert (out / "gradcam" / "cat.png").is_file()
    assert (out / "explanations.html").is_file()


def test_json_is_all_that_is_said(tmp_path: Path, capsys):
    words = ["--limit", "2", "--steps", "0", "--json", "--out", str(tmp_path)]
    cli("explain", MODEL, "digits", "--neuron", "layer4:3", *words)
    section = json.loads(capsys.readouterr().out)
    assert section["n"] == 2
    assert "2 of 1,797 images, evenly through the data" in section["assumptions"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "gradcan"], "Near|There is: gradcam"),
        (["--counterfactal"], "--counterfactual"),
        (["--method", "gradcam,layercam", "--relu", "False"], "--gradcam.relu or --layercam.relu"),
        (["--method", "gradcam,gradcam_pp,gradcam", "--gradcam.layer", "no"], "no layer 'no'"),
        (["--target", "gold fish"], "goldfish"),
        (["--neuron", "layer4"], "is no unit"),
        (["--neuron", "layer4:3", "--target", "1"], "exclude each other"),
        (["--limit", "0"], "at least one"),
    ],
)
def test_mistakes_at_the_command_line_are_named(words: list[str], said: str, tmp_path: Path):
    with pytest.raises(ArgumentError, match=f"(?s).*{said}"):
        cli("explain", MODEL, "digits", *words, "--out", str(tmp_path))


def test_what_is_no_image_is_refused(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        beholder.explain(MODEL, tmp_path / "broken.png")
    with pytest.raises(DataError, match="no images"):
        beholder.explain(MODEL, [])
    with pytest.raises(ArgumentError, match="is no image"):
        beholder.explain(MODEL, [np.zeros((8, 8))])
    with pytest.raises(ArgumentError, match="gradcam is named twice"):
        beholder.explain(MODEL, torch.zeros(1, 3, 8, 8), ["gradcam", GradCAM()])


def gains(deletion: float, insertion: float, spread: float | None) -> dict[str, Value]:
    def value(x: float) -> Value:
        ends = {} if spread is None else {"low": x - spread, "high": x + spread}
        return Value(estimate=x, unit="points", **ends)

    return {"a_deletion_gain": value(deletion), "a_insertion_gain": value(insertion)}


@pytest.mark.parametrize(
    ("values", "severity", "said"),
    [
        (gains(0.2, 0.2, 0.1), "good", "a found what the model uses"),
        (gains(0.2, 0.05, 0.1), "look", "maps of a are no evidence"),
        (gains(0.2, 0.2, None), "none", "too few to judge by, a came out ahead"),
        (gains(-0.2, 0.2, None), "none", "no method came out ahead"),
    ],
)
def test_the_verdict_needs_both_intervals_above_zero(values: dict, severity: str, said: str):
    found = verdict(["a"], values, 64)
    assert found[0] == severity
    assert said in found[1]


def test_methods_that_fail_are_named_beside_those_that_do_not():
    values = gains(0.2, 0.2, 0.1)
    values |= {name.replace("a_", "b_", 1): v for name, v in gains(0, 0.2, 0.1).items()}
    assert verdict(["a", "b"], values, 64)[1].endswith("; b did not.")


def explanation(heatmap: list) -> Explanation:
    return Explanation(torch.tensor([heatmap]), torch.tensor([0]), torch.tensor([1.0]))


def test_scales_for_looking_are_those_worked_by_hand():
    signed = explanation([[1.0, -4.0], [0.0, 2.0]])
    scaled = signed.normalised("minmax")[0]
    assert torch.allclose(scaled, torch.tensor([[5 / 6, 0], [4 / 6, 1]]))
    assert signed.normalised("sym")[0].tolist() == [[0.25, -1], [0, 0.5]]
    assert signed.normalised("percentile99")[0].tolist() == [[0.25, -1], [0, 0.5]]
    assert explanation([[0.0, 0.0], [0.0, 0.0]]).normalised()[0].max() == 0


def test_an_outlier_does_not_hide_the_rest_at_the_99th_percentile():
    flat = [1.0] * 199 + [100.0]
    found = explanation([flat]).normalised("percentile99")
    assert found.min() == 1


def test_evidence_for_is_warm_against_is_blue_and_nothing_leaves_the_image_grey():
    found = explanation([[1.0, 0.0, -1.0]]).overlay(torch.full((1, 3, 1, 3), 0.5))[0, 0]
    warm, grey, cold = found.astype(int)
    assert warm[0] > warm[2] + 50
    assert grey.tolist() == [grey[0]] * 3
    assert cold[2] > cold[0] + 50
