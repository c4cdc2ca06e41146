"""`beholder train` and `beholder pretrain`, from data to a run that other verbs take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from study.world import cli, folders
from train.loop.small import model, squares

import beholder
from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.data.curate.manifest import Manifest, describe, fingerprint_of
from beholder.evaluate.given import training_hashes
from beholder.models.run import load
from beholder.train.monitors import CollapseError, CollapseMonitor
from beholder.train.objectives.base import Combine, Objective, Step
from beholder.train.verb import Trained, pretrain, train

QUICK: dict[str, Any] = {
    **{"backbone": "test_vit", "image_size": 32, "epochs": 2, "batch_size": 16, "device": "cpu"},
    **{"quiet": True, "options": {"classification": {"view": "raw"}}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    place = tmp_path_factory.mktemp("train") / "run"
    return train(squares(90), out=place, ema=0.9, lr=3e-3, **QUICK)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data") / "digits", ["one", "seven"], 30)


def test_the_run_is_one_for_beholder_and_for_plain_timm(made: Trained) -> None:
    loaded = beholder.load(made.directory)
    assert loaded.classes == ("a", "b", "c")
    images = torch.rand(2, 3, 32, 32)
    plain = timm.create_model(f"local-dir:{made.directory}", pretrained=True).eval()
    with torch.no_grad():
        expected = made.model.logits(images)
        assert torch.equal(loaded.logits(images), expected)
        assert torch.allclose(plain(loaded.normalise(images)), expected, atol=1e-5)


def test_the_sentence_has_the_accuracy_with_its_interval(made: Trained) -> None:
    assert made.accuracy is not None
    assert made.accuracy.low is not None
    assert made.accuracy.low <= made.accuracy.estimate <= made.accuracy.high  # type: ignore[operator]
    assert "average of the weights on the validation part" in made.sentence
    told = json.loads((made.directory / "results.json").read_text())
    assert told["values"]["accuracy"]["estimate"] == made.accuracy.estimate
    assert {"validation", "train"} <= set(made.table["part"])


def test_what_was_held_back_was_not_learned_from(made: Trained) -> None:
    roles = pl.read_parquet(made.directory / "predictions.parquet")
    parts = dict(roles.group_by("split").len().iter_rows())
    assert parts == {"train": 58, "val": 14, "test": 18}
    learned = roles.filter(pl.col("split") != "test")["exact_hash"]
    assert training_hashes(made.directory) == set(learned)


def test_study_judges_only_what_was_held_back(data: Path, tmp_path: Path) -> None:
    run = train(data, out=tmp_path / "run", **QUICK)
    report = beholder.study(
        data, str(run.directory), out=tmp_path / "study", quiet=True, sections=("accuracy",)
    )
    held_back = pl.read_parquet(run.directory / "predictions.parquet").filter(split="test")
    judged = pl.read_parquet(report.directory / "predictions.parquet").filter(split="test")
    assert judged["exact_hash"].sort().to_list() == held_back["exact_hash"].sort().to_list()
    assert 0 < len(judged) < 60


def test_the_same_command_does_nothing_again(made: Trained) -> None:
    again = train(squares(90), out=made.directory, ema=0.9, lr=3e-3, **QUICK)
    assert again.sentence.startswith("Nothing to do")
    assert again.accuracy == made.accuracy


def test_a_run_is_where_another_begins(made: Trained, tmp_path: Path) -> None:
    quick = {k: v for k, v in QUICK.items() if k not in ("backbone", "image_size")}
    more = train(squares(90), start=made.directory, out=tmp_path / "r", lr=1e-9, warmup=0, **quick)
    assert more.model.input_size == (32, 32)
    before, after = made.model.state_dict(), more.model.state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
    with pytest.raises(ArgumentError, match="exclude each other"):
        train(squares(90), "test_vit", start=made.directory)
    with pytest.raises(ModelError, match="is no run"):
        train(squares(90), start=tmp_path / "nowhere", **quick)


def test_a_manifest_leaves_out_and_relabels(tmp_path: Path) -> None:
    images = squares(90)
    whole = train(images, out=tmp_path / "whole", **QUICK)
    learned = pl.read_parquet(tmp_path / "whole" / "predictions.parquet").filter(split="train")
    drop = learned["id"].to_list()[:20]
    frame = pl.DataFrame({"id": images.table["id"], "keep": ~images.table["id"].is_in(drop)})
    told = {
        "dataset": images.name,
        "fingerprint": fingerprint_of(images),
        "classes": images.classes,
    }
    manifest = Manifest(frame, describe("by hand", **told), images)
    less = train(images, manifest=manifest, out=tmp_path / "less", **QUICK)
    roles = pl.read_parquet(tmp_path / "less" / "predictions.parquet")
    assert not set(roles["id"]) & set(drop)
    assert whole.run.steps > less.run.steps
    assert (
        roles.filter(split="test")["id"].to_list()
        == (
            pl.read_parquet(tmp_path / "whole" / "predictions.parquet").filter(split="test")["id"]
        ).to_list()
    )


def test_pretraining_watches_for_collapse_and_keeps_no_classifier(tmp_path: Path) -> None:
    options = {"barlow_twins": {"projector": (64, 64)}}
    quick = QUICK | {"batch_size": 64, "epochs": 1, "options": options}
    made = pretrain(squares(450), out=tmp_path / "r", **quick)
    assert {"std", "rank", "cos", "alarms", "knn"} == made.run.last("probe").keys()
    config = json.loads((made.directory / "config.json").read_text())
    assert config["num_classes"] == 0
    loaded = beholder.load(made.directory)
    with torch.no_grad():
        assert loaded.features(torch.rand(1, 3, 32, 32)).shape == (1, 64)


class Nothing(Objective):
    """Drives all features to one point."""

    def views(self, sample: Any, generator: torch.Generator) -> dict[str, Any]:
        return {"image": torch.from_numpy(sample["image"]).permute(2, 0, 1) / 255}

    def loss(self, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"size": model.features(batch["image"]).square().mean()}

    def features(self, model: Any, images: torch.Tensor) -> torch.Tensor:
        return super().features(model, images) * 0 + 1


def test_a_collapse_stops_the_run_with_status_3(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 3, "batch_size": 64, "objective": Nothing(), "options": {}}
    with pytest.raises(CollapseError, match="after epoch 3") as caught:
        pretrain(squares(450), stop_on_collapse=True, out=tmp_path / "r", **options)
    assert caught.value.exit_code == 3


def test_a_third_alarm_in_a_row_warns() -> None:
    monitor = CollapseMonitor(squares(70), alarms=2)
    with pytest.warns(UserWarning, match="collapsed"):
        found = monitor(model(), Nothing(), Step(9, 10, 3.0))
    assert found["alarms"] == 3


def test_two_objectives_share_one_backbone(tmp_path: Path) -> None:
    options = {"classification": {"view": "raw"}, "barlow_twins": {"projector": (64,)}}
    made = train(
        squares(90),
        **QUICK | {"objective": "classification+barlow-twins", "options": options},
        shares={"barlow_twins": 0.25, "barlow_twins/redundancy": 0.5},
        out=tmp_path / "r",
    )
    assert isinstance(made.run.objective, Combine)
    assert made.run.objective.weights == {"classification": 1.0, "barlow_twins": 0.25}
    assert made.run.objective.objectives["barlow_twins"].weights["redundancy"] == 0.5
    assert {"classification/ce", "barlow_twins/invariance"} <= made.run.last("train").keys()
    assert made.accuracy is not None


def test_an_objective_without_steps_is_fitted_once_and_its_run_reloads(tmp_path: Path) -> None:
    words = {"backbone": "test_vit", "image_size": 32, "quiet": True, "out": tmp_path / "r"}
    options = {"off_the_shelf": {"jitter": 1}}
    made = train(squares(90), objective="off_the_shelf", options=options, **words)
    assert made.sentence.startswith("Fitted in ")
    assert made.accuracy is not None
    again = train(squares(90), objective="off_the_shelf", options=options, **words)
    assert again.sentence.startswith("Nothing to do")
    assert again.accuracy == made.accuracy
    images = [squares(90).read(row) for row in range(3)]
    expected = made.model.predict(images).probability
    np.testing.assert_allclose(
        load(tmp_path / "r").predict(images).probability, expected, atol=1e-5
    )


def test_the_command_line_trains_and_says_what_the_weights_are(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", data, "--backbone", "test_vit", "--image-size", "32", "--epochs", "1"]
    words += ["--view", "raw", "--augment", "cutmix", "--beta", "0.5", "--out", tmp_path / "r"]
    assert cli([*words, "--seed", "1"], monkeypatch) == 0
    said = capsys.readouterr()
    assert "test_vit begins with random weights" in " ".join(said.err.split())
    assert said.out.startswith("Trained ")
    assert cli([*words, "--seed", "1", "--json"], monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finding"].startswith("Nothing to do")
    assert told["directory"] == str(tmp_path / "r")
    toml = (tmp_path / "r" / "run.toml").read_text()
    assert 'classification.view = "raw"' in toml
    assert "mixing.beta = 0.5" in toml
    assert str(tmp_path) not in toml


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backbone", "resnet999"], "resnet999"),
        (["--objective", "magic"], "magic"),
        (["--weight", "ce"], "--weight ce"),
        (["--lr", "-1"], "--lr = -1"),
        (["--smoothness", "1"], "--smoothing"),
        (["--objective", "barlow_twins", "--augment", "cutmix"], "labelled images"),
    ],
)
def test_what_cannot_be_is_named(
    words: list[str],
    said: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone = [] if "--backbone" in words else ["--backbone", "test_vit", "--image-size", "32"]
    place = ["--out", tmp_path / "r"]
    assert cli(["train", data, *backbone, *words, *place], monkeypatch) == 2
    assert said in capsys.readouterr().err


def test_images_without_labels_cannot_be_classified(tmp_path: Path) -> None:
    images = squares(40)
    table = images.table.with_columns(label=pl.lit(None, pl.Int32))
    unlabelled = images.__class__(**{**vars(images), "table": table, "kind": "unlabelled"})
    with pytest.raises(DataError, match="with a label"):
        train(unlabelled, **QUICK)
    options = QUICK | {"options": {"barlow_twins": {"projector": (64,)}}}
    made = pretrain(unlabelled, out=tmp_path / "r", **options)
    assert made.run.finished
    assert np.isfinite(made.metrics["value"].to_numpy()).all()
