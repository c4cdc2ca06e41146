"""Probes: each against scikit-learn by hand, on planted features, and whole on real images."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from beholder.core.engines import Eager
from beholder.core.errors import ArgumentError
from beholder.core.registry import make
from beholder.data.sources import open_images
from beholder.evaluate.benchmarks import probes
from beholder.evaluate.benchmarks.probes import Probes, Stages, probe_callback, side_of, untrained
from beholder.evaluate.benchmarks.readers import Part, knn, linear, linear_sgd, svm
from beholder.metrics.neighbours import knn_predict, unit_rows
from beholder.models.open import open_vision
from beholder.train.objectives.base import Step
from beholder.train.objectives.off_the_shelf import OffTheShelf

STEP = Step(0, 1)


@pytest.fixture(scope="module")
def encoder():
    return open_vision("untrained:test_resnet", input_size=(32, 32))


@pytest.fixture(scope="module")
def digits():
    """Four digits, 30 images each, every third held out."""
    found = open_images("digits")
    label = found.table["label"].to_numpy()
    rows = np.concatenate([np.flatnonzero(label == digit)[:30] for digit in range(4)])
    few = found.where(np.isin(np.arange(len(found)), rows).tolist())
    role = pl.Series("split", ["test" if row % 3 == 0 else "train" for row in range(len(few))])
    return type(few)(**{**vars(few), "table": few.table.with_columns(role)})


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """No network is converted for one pass over few images."""
    monkeypatch.setattr(probes, "fastest", lambda module, *rest: (Eager(module), 0.0, []))


def planted(rows=120, dim=8, apart=3.0, seed=0) -> tuple[np.ndarray, Part]:
    """Three clouds; two rows of three train."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    x = rng.normal(size=(rows, dim)) + apart * np.eye(dim)[label]
    train, test = np.flatnonzero(np.arange(rows) % 9 < 6), np.flatnonzero(np.arange(rows) % 9 > 5)
    return x.astype(np.float32), Part(train, test, label, np.arange(rows), train % 5 == 0)


@pytest.mark.parametrize("reader", [knn, svm, linear])
def test_readers_tell_clouds_apart(reader):
    x, part = planted(apart=5.0)
    answer, _ = reader(x, part)
    assert (answer == part.label[part.test]).mean() > 0.95


@pytest.mark.parametrize("reader", [knn, svm, linear])
def test_readers_find_nothing_in_noise(reader):
    x, part = planted(rows=900, apart=0.0)
    answer, _ = reader(x, part)
    assert abs((answer == part.label[part.test]).mean() - 1 / 3) < 0.1


@pytest.mark.parametrize("reader", [knn, svm, linear])
def test_a_class_that_does_not_train_is_never_answered(reader):
    x, part = planted()
    label = np.where(np.isin(np.arange(len(x)), part.train) & (part.label == 1), 2, part.label)
    answer, _ = reader(x, Part(part.train, part.test, label, part.unit, part.tune))
    assert set(answer) <= {0, 2}


def test_linear_is_logistic_regression_on_standardised_features():
    x, part = planted(apart=1.0)
    answer, setting = linear(x, part)
    scaler = StandardScaler().fit(x[part.train])
    peer = LogisticRegression(C=float(setting.removeprefix("C = ")), max_iter=1000)
    peer.fit(scaler.transform(x[part.train]), part.label[part.train])
    assert np.array_equal(answer, peer.predict(scaler.transform(x[part.test])))


def test_more_features_than_rows_give_the_same_answers():
    x, part = planted(rows=90, dim=200, apart=2.0)
    answer, setting = linear(x, part)
    scaler = StandardScaler().fit(x[part.train])
    peer = LogisticRegression(C=float(setting.removeprefix("C = ")), max_iter=1000, tol=1e-6)
    peer.fit(scaler.transform(x[part.train]), part.label[part.train])
    expected = peer.predict(scaler.transform(x[part.test]))
    assert (answer == expected).mean() > 0.95


def test_knn_has_the_votes_of_the_metric():
    x, part = planted()
    votes = knn_predict(x[part.test], x[part.train], part.label[part.train], k=20)
    assert np.array_equal(knn(x, part)[0], votes.argmax(1))


def test_svm_is_that_of_the_off_the_shelf_features():
    x, part = planted(apart=2.0)
    answer, setting = svm(x, part)
    unit = unit_rows(x)
    peer = LinearSVC(C=float(setting.removeprefix("C = ")), dual=False)
    peer.fit(unit[part.train], part.label[part.train])
    assert np.array_equal(answer, peer.predict(unit[part.test]))


@pytest.mark.parametrize("normed", [False, True])
def test_linear_by_steps_learns_from_its_views_and_judges_the_whole_images(normed):
    x, part = planted(apart=5.0)
    noise = np.random.default_rng(1)
    asked = []

    def views(epoch, rows):
        asked.append((epoch, tuple(rows)))
        return torch.from_numpy(x[rows] + noise.normal(0, 0.1, (len(rows), 8)).astype(np.float32))

    answer, setting = linear_sgd(x, part, views, epochs=30, normed=normed, seed=0)
    assert (answer == part.label[part.test]).mean() > 0.95
    assert setting.startswith("lr = ")
    assert [epoch for epoch, _ in asked] == list(range(30))
    learn = set(part.train[~part.tune])
    assert all(set(rows) == learn for _, rows in asked)
    assert len({rows for _, rows in asked}) == 30


def test_stages_are_pooled_to_at_most_9216_numbers():
    assert side_of(64, 56, 56) == 12
    assert side_of(512, 7, 7) == 4
    assert side_of(64, 7, 7) == 7
    assert side_of(20_000, 7, 7) == 1


def test_the_layers_are_those_of_the_feature_info(encoder):
    stages = Stages(encoder)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = stages(images)
        maps = list(encoder.feature_maps(images).values())
    assert list(stages.layout) == [stage["module"] for stage in encoder.backbone.feature_info]
    assert found.shape[1] == list(stages.layout.values())[-1].stop
    last = list(stages.layout.values())[-1]
    side = side_of(*maps[-1].shape[1:])
    expected = torch.nn.functional.adaptive_max_pool2d(maps[-1], side).flatten(1)
    torch.testing.assert_close(found[:, last], expected)


def test_the_untrained_twin_differs_in_its_weights_alone(encoder):
    twin = untrained(encoder, seed=3)
    assert twin.input_size == encoder.input_size
    assert twin.mean == encoder.mean
    assert twin.weights_hash == untrained(encoder, seed=3).weights_hash
    assert twin.weights_hash not in {encoder.weights_hash, untrained(encoder, seed=4).weights_hash}


def test_a_form_that_timm_does_not_make_is_drawn_layer_by_layer():
    import timm

    odd = timm.create_model("test_vit", img_size=48, num_classes=0)
    model = open_vision(odd, input_size=(48, 48))
    twin = untrained(model)
    images = torch.rand(1, 3, 48, 48)
    assert twin.features(images).shape == model.features(images).shape
    assert twin.weights_hash != model.weights_hash


def test_chance_of_others_is_left_alone(encoder, digits):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    untrained(encoder)
    Probes(("knn",)).run(encoder, digits, limit=40)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_section_has_every_probe_with_its_twin_and_gain(encoder, digits):
    probe = make("benchmark", "probes", kinds=("knn", "svm"))
    section, records = probe.measure(encoder, digits, seed=1)
    assert set(section.values) == {
        *("knn", "knn_untrained", "knn_gain", "svm", "svm_untrained", "svm_gain")
    }
    for name in ("knn", "svm"):
        rows = records.filter((pl.col("probe") == name) & (pl.col("backbone") == "trained"))
        assert section.values[name].estimate == rows["score"].mean()
        assert section.values[name].low is not None
        assert rows["id"].is_unique().all()
    gain = section.values["knn_gain"].estimate
    parts = (section.values[name].estimate for name in ("knn", "knn_untrained"))
    assert gain == pytest.approx(next(parts) - next(parts))
    assert probe.summarise(records).to_dict() == section.to_dict()
    assert probe.differences(records, records)["knn"].estimate == 0.0


def test_features_are_taken_once(encoder, digits, monkeypatch):
    first, records = Probes(("knn",)).measure(encoder, digits)
    monkeypatch.setattr(probes, "fastest", lambda *a: pytest.fail("the model was run again"))
    again, same = Probes(("knn",)).measure(encoder, digits)
    assert again.to_dict() == first.to_dict()
    assert same.equals(records)


def test_layers_and_linear_by_steps_run_on_images(encoder, digits):
    few = digits.where(digits.table["label"] < 2)
    section = Probes(("layers", "linear_sgd"), epochs=1).run(encoder, few)
    stages = [name for name in section.values if name.startswith("layers:") and "_" not in name]
    assert len(stages) == len(encoder.backbone.feature_info)
    assert section.values["linear_sgd"].n == (few.table["split"] == "test").sum()


def test_a_callback_gives_the_accuracy_of_held_out_images(encoder, digits):
    call = probe_callback(digits, ("knn", "svm"))
    encoder.train()
    found = call(encoder, OffTheShelf(), STEP)
    assert encoder.training
    encoder.eval()
    assert set(found) == {"knn", "svm"}
    assert found == call(encoder, OffTheShelf(), STEP)
    assert found["svm"] > 0.5


def test_probes_refuse_what_they_cannot_do(encoder, digits):
    with pytest.raises(ArgumentError, match="cannot follow a training"):
        probe_callback(digits, ("layers",))
    with pytest.raises(ArgumentError, match="guess"):
        make("benchmark", "probes", kinds=("guess",))
    several = type(digits)(**{**vars(digits), "kind": "multilabel"})
    assert "one label each" in Probes().run(encoder, several).finding
