"""`beholder.evaluate`: the figures of a study without its report, benchmarks, comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from study.world import cli, folders

import beholder
from beholder.core.engines import Eager, FromBytes
from beholder.core.errors import ArgumentError
from beholder.data.sources import open_images
from beholder.evaluate import verb
from beholder.evaluate.benchmarks import probes
from beholder.evaluate.benchmarks.probes import Probes
from beholder.models.open import open_vision
from beholder.models.run import save_model
from beholder.train.objectives.off_the_shelf import OffTheShelf


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Images to learn from, others to judge, and two runs."""
    place = tmp_path_factory.mktemp("world")
    folders(place / "learn", ["zero", "one"], 20)
    folders(place / "judge", ["zero", "one"], 20, first=20)
    for seed in (0, 1):
        encoder = open_vision("untrained:test_resnet", input_size=(32, 32), seed=seed)
        model = OffTheShelf(jitter=1).fit(encoder, open_images(place / "learn"))
        save_model(model, {}, place / f"run{seed}")
    return place


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """No network is converted for one pass over few images."""

    def engine(model, *rest):
        return Eager(FromBytes(model, "descriptor")), 0.0, []

    monkeypatch.setattr(probes, "fastest", lambda module, *rest: (Eager(module), 0.0, []))
    monkeypatch.setattr(verb, "choose_engine", engine)


def test_figures_are_those_of_the_model_on_the_images(world):
    images = open_images(world / "judge")
    found = beholder.evaluate(world / "run0", images)
    model = beholder.load(world / "run0")
    answers = model.predict([images.read(row) for row in range(len(images))]).labels
    truth = [images.classes[label] for label in images.table["label"]]
    right = [a == b for a, b in zip(answers, truth, strict=True)]
    assert found["accuracy"].values["accuracy"].estimate == sum(right) / len(right)
    assert found["calibration"].values
    assert len(found.records["answers"]) == 40


def test_a_study_of_the_same_run_says_the_same(world, tmp_path):
    found = beholder.evaluate(str(world / "run0"), world / "judge")
    report = beholder.study(
        world / "judge", world / "run0", out=tmp_path / "run", quiet=True, sections=("accuracy",)
    )
    assert found["accuracy"].values["accuracy"] == report.sections[0].values["accuracy"]


def test_another_model_is_compared_image_by_image(world):
    found = beholder.evaluate(world / "run0", world / "judge", compare=world / "run1")
    frame = found["comparison"].frame("models")
    row = frame.row(0, named=True)
    both = found.records["answers"].join(found.records["answers.2"], on="id", suffix="_2")
    gap = both["correct"].cast(pl.Float64).mean() - both["correct_2"].cast(pl.Float64).mean()
    assert row["difference"] == pytest.approx(gap)
    assert (row["only_first_right"] - row["only_other_right"]) / 40 == pytest.approx(gap)
    itself = beholder.evaluate(world / "run0", world / "judge", compare=[world / "run0"])
    assert itself["comparison"].frame("models")["difference"].to_list() == [0.0]


def test_probes_by_name_and_as_an_object_are_the_same(world):
    encoder = open_vision("untrained:test_resnet", input_size=(32, 32))
    named = beholder.evaluate(encoder, world / "judge", probe="knn")
    given = beholder.evaluate(encoder, world / "judge", benchmark=Probes(("knn",)))
    assert named.to_dict() == given.to_dict()
    assert named.records["probes"].equals(given.records["probes"])


def test_benchmarks_of_two_models_come_with_their_difference(world):
    encoders = [
        open_vision("untrained:test_resnet", input_size=(32, 32), seed=seed) for seed in (0, 1)
    ]
    found = beholder.evaluate(encoders[0], world / "judge", probe="knn", compare=encoders[1])
    first, second, difference = found.sections
    value = difference.values["knn, untrained:test_resnet (2)"]
    gap = first.values["knn"].estimate - second.values["knn"].estimate
    assert value.estimate == pytest.approx(gap)
    assert set(found.records) == {"probes", "probes.2"}


def test_what_is_written_gives_the_same_section_again(world, tmp_path):
    encoder = open_vision("untrained:test_resnet", input_size=(32, 32))
    found = beholder.evaluate(encoder, world / "judge", probe="knn", out=tmp_path)
    records = pl.read_parquet(tmp_path / "records" / "probes.parquet")
    assert Probes(("knn",)).summarise(records).to_dict() == found["probes"].to_dict()
    assert json.loads((tmp_path / "results.json").read_text()) == found.to_dict()


def test_unknown_names_are_refused_with_those_that_there_are(world):
    with pytest.raises(ArgumentError, match=r"no benchmark 'probs'[\s\S]*probes"):
        beholder.evaluate(world / "run0", world / "judge", benchmark="probs")
    with pytest.raises(ArgumentError, match=r"no probe 'know'[\s\S]*knn"):
        beholder.evaluate(world / "run0", world / "judge", probe="know")


def test_images_without_single_labels_are_refused(world):
    images = open_images(world / "judge")
    unlabelled = type(images)(**{**vars(images), "kind": "unlabelled"})
    with pytest.raises(ArgumentError, match="no single label"):
        beholder.evaluate(world / "run0", unlabelled)


def test_the_command_says_a_sentence_then_tables(world, monkeypatch, capsys):
    assert not cli(["evaluate", str(world / "run0"), str(world / "judge")], monkeypatch)
    said = capsys.readouterr().out
    assert said.startswith("On 40 images the model is right ")
    assert "Recall" in said


def test_the_command_gives_json_and_nothing_else(world, monkeypatch, capsys):
    words = ["evaluate", "untrained:test_resnet", str(world / "judge"), "--probe", "knn", "--json"]
    assert not cli([*words, "--limit", "20"], monkeypatch)
    sections = json.loads(capsys.readouterr().out)["sections"]
    assert [section["id"] for section in sections] == ["probes"]
    assert sections[0]["n"] == 20


def test_flags_of_the_probes_reach_them_and_others_are_refused(world, monkeypatch, capsys):
    words = ["evaluate", "untrained:test_resnet", str(world / "judge"), "--probe", "knn"]
    assert cli([*words, "--epoch", "3"], monkeypatch) == 2
    assert "--epochs" in capsys.readouterr().err
