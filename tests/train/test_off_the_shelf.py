"""Row 24: frozen features and a linear SVM, as scikit-learn would do it by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer
from sklearn.svm import LinearSVC

from beholder.core.errors import ArgumentError, DataError, ModelError
from beholder.core.registry import make
from beholder.data.sources import open_images
from beholder.evaluate.given import judge_run
from beholder.models.classifier_heads import UnitHead, powered_unit
from beholder.models.jitter import versions
from beholder.models.open import open_vision
from beholder.models.run import load, save_model
from beholder.train.objectives import off_the_shelf
from beholder.train.objectives.off_the_shelf import OffTheShelf, Shelf, search


@pytest.fixture(scope="module")
def encoder():
    return open_vision("untrained:test_resnet", input_size=(32, 32))


@pytest.fixture(scope="module")
def digits():
    """Three digits, 20 images each."""
    found = open_images("digits")
    label = found.table["label"].to_numpy()
    rows = np.concatenate([np.flatnonzero(label == digit)[:20] for digit in range(3)])
    return found.where(np.isin(np.arange(len(found)), rows).tolist())


@pytest.fixture(scope="module")
def fitted(encoder, digits):
    return OffTheShelf(jitter=1).fit(encoder, digits)


def features_of(model, images, part="pooled"):
    """Each by itself, [N, D]."""
    with torch.inference_mode():
        batch = [torch.from_numpy(model.prepare(images.read(row))) for row in range(len(images))]
        found = model.descriptor(torch.stack(batch).permute(0, 3, 1, 2).float() / 255)
    return found[:, model.layout[part]].numpy()


def batch_of(model, images):
    pixels = [torch.from_numpy(model.prepare(images.read(row))) for row in range(len(images))]
    return torch.stack(pixels).permute(0, 3, 1, 2)


def test_the_registry_has_it_and_nothing_is_trained_by_steps():
    objective = make("objective", "off-the-shelf", jitter="1")
    assert not objective.trains
    with pytest.raises(NotImplementedError, match="use `fit`"):
        objective.loss(None, {})


def test_the_power_keeps_the_sign():
    assert powered_unit(torch.tensor([[-4.0, 0.0]]), 0.5).tolist() == [[-1.0, 0.0]]
    root = powered_unit(torch.tensor([[-4.0, 1.0]]), 0.5)
    torch.testing.assert_close(root, torch.tensor([[-2.0, 1.0]]) / 5**0.5)


def test_a_feature_of_zero_has_a_finite_slope():
    x = torch.tensor([[0.0, 1.0, 2.0]], requires_grad=True)
    powered_unit(x, 0.5).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_head_decides_as_the_svm(encoder, digits, fitted):
    labels = digits.table["label"].to_numpy()
    x = features_of(encoder, digits)
    root = FunctionTransformer(lambda v: np.sign(v) * np.sqrt(np.abs(v)))
    strength = search("svm", OffTheShelf(jitter=1).shelf(encoder, digits)).strength
    by_hand = make_pipeline(root, Normalizer(), LinearSVC(C=strength, dual=False))
    by_hand.fit(x, labels)
    with torch.inference_mode():
        decisions = fitted.head(fitted.descriptor(batch_of(fitted, digits))).numpy()
    np.testing.assert_allclose(decisions, by_hand.decision_function(x), atol=1e-5)
    answers = fitted.predict([digits.read(row) for row in range(len(digits))]).predicted
    assert np.array_equal(answers, by_hand.predict(x))


def test_two_classes_have_one_decision(encoder, digits):
    two = digits.where(digits.table["label"] < 2)
    model = OffTheShelf(jitter=1, power=1.0).fit(encoder, two)
    assert model.head.weight.shape[0] == 1
    answers = model.predict([two.read(row) for row in range(len(two))])
    assert (answers.predicted == two.table["label"].to_numpy()).mean() > 0.9


def test_it_is_saved_and_loaded_as_any_model(fitted, digits, tmp_path):
    save_model(fitted, {}, tmp_path)
    again = load(tmp_path)
    assert again.classes == fitted.classes == ("0", "1", "2")
    pictures = [digits.read(row) for row in range(4)]
    np.testing.assert_allclose(
        again.predict(pictures).probability, fitted.predict(pictures).probability, atol=1e-6
    )


def test_jitter_stays_with_the_model_and_is_averaged(encoder, digits, tmp_path):
    model = OffTheShelf(jitter=16).fit(encoder, digits)
    save_model(model, {}, tmp_path)
    again = load(tmp_path)
    images = batch_of(model, digits)[:3].float() / 255
    with torch.inference_mode():
        each = torch.stack([model.head(model.descriptor(view)) for view in versions(images)])
        torch.testing.assert_close(model.head.logits(each.mean(0)), model.logits(images))
        torch.testing.assert_close(again.logits(images), model.logits(images))
        assert not torch.allclose(model.head.logits(each[0]), model.logits(images), atol=1e-4)


def test_a_study_of_a_jittered_model_asks_it_with_its_versions(encoder, digits):
    model = OffTheShelf(jitter=16).fit(encoder, digits)
    judged = judge_run(
        model,
        lambda: pytest.fail("no engine of descriptors is wanted"),
        digits,
        [str(row) for row in range(len(digits))],
        trained_on=set(),
        exact=[""] * len(digits),
        workers=1,
        directory=None,
        progress=lambda count: None,
    )
    expected = model.predict([digits.read(row) for row in range(len(digits))])
    assert judged.answered.classes[:3] == model.classes
    np.testing.assert_allclose(judged.answered.probability[:, :3], expected.probability, atol=1e-5)


def test_there_are_16_versions_and_the_first_is_the_image():
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    found = versions(images)
    assert len(found) == 16
    assert torch.equal(found[0], images)
    assert torch.equal(found[8], images.flip(-1))
    assert all(version.shape == images.shape for version in found)
    assert all(0 <= version.min() <= version.max() <= 1 for version in found)
    assert len({version.numpy().tobytes() for version in found}) == 16


def test_crops_are_the_corners_of_the_image():
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    _, centre, top_left, top_right = versions(ramp)[:4]
    assert (centre.max() - centre.min()).item() == pytest.approx(0.75, abs=0.02)
    assert top_left.min() < 0.02
    assert top_left.max() == pytest.approx(0.75, abs=0.02)
    assert top_right.max() > 0.98
    assert top_right.min() == pytest.approx(0.25, abs=0.02)


def test_a_rotation_keeps_what_is_round():
    side = torch.arange(64) - 31.5
    disc = ((side[:, None] ** 2 + side**2) < 400).float().expand(1, 3, 64, 64)
    for rotated in versions(disc)[6:8]:
        assert (rotated - disc).abs().mean() < 0.02


def test_versions_of_one_image_never_lie_on_both_sides(monkeypatch):
    rng = np.random.default_rng(0)
    shelf = Shelf(rng.normal(size=(12, 4, 3)), np.arange(12) % 2, np.arange(12), ("a", "b"))
    seen = []

    def watched(kind, strength, x, y):
        seen.append({tuple(row) for row in x})
        return LinearSVC().fit(x, y)

    monkeypatch.setattr(off_the_shelf, "fit_linear", watched)
    search("svm", shelf)
    for rows in seen:
        inside = [sum(tuple(v) in rows for v in image) for image in shelf.features]
        assert set(inside) == {0, 4}


def test_images_of_one_source_stay_together_and_score_lower_for_it():
    rng = np.random.default_rng(1)
    sources = np.repeat(np.arange(20), 5)
    x = rng.normal(size=(20, 30))[sources][:, None]
    labels = rng.integers(2, size=20)[sources]
    apart = search("svm", Shelf(x, labels, np.arange(100), ("a", "b")))
    together = search("svm", Shelf(x, labels, sources, ("a", "b")))
    assert max(apart.accuracy.values()) == 1.0
    assert max(together.accuracy.values()) < 0.9


def test_held_out_decisions_come_back_in_the_order_of_the_images():
    labels = np.array([0, 1, 2] * 8)
    x = np.eye(3)[labels][:, None] + np.random.default_rng(2).normal(0, 0.01, (24, 1, 3))
    found = search("svm", Shelf(x, labels, np.arange(24), ("a", "b", "c")))
    assert found.decisions is not None
    assert np.array_equal(found.decisions.argmax(1), labels)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    train, test = next(iter(folds.split(labels, labels, np.arange(24))))
    peer = LinearSVC(C=found.strength, dual=False).fit(x[train, 0], labels[train])
    np.testing.assert_allclose(found.decisions[test], peer.decision_function(x[test, 0]))


def test_a_class_with_one_image_leaves_c_at_one_and_says_so(encoder, digits):
    label = digits.table["label"].to_numpy()
    first = np.flatnonzero(label == 2)[0]
    few = digits.where(((label < 2) | (np.arange(len(label)) == first)).tolist())
    model = OffTheShelf(jitter=1).fit(encoder, few)
    assert model.assumptions == [
        "C = 1, not chosen by cross-validation: 2 has a single independent image."
    ]
    section = OffTheShelf(jitter=1).cross_validate(encoder, few)
    assert section.status == "not_applicable"
    assert section.assumptions == model.assumptions


def test_cross_validation_gives_a_figure_with_its_interval(encoder, digits):
    section = OffTheShelf(jitter=1).cross_validate(encoder, digits)
    value = section.values["accuracy"]
    assert value.estimate is not None
    assert value.low is not None
    assert value.low < value.estimate
    assert value.n == 60
    assert section.frame("strengths")["accuracy"].max() == pytest.approx(value.estimate)


def test_any_part_of_the_descriptor_may_be_the_layer(encoder, digits):
    part = next(iter(encoder.layout))
    model = OffTheShelf(layer=part, jitter=1).fit(encoder, digits)
    assert isinstance(model.head, UnitHead)
    span = encoder.layout[part]
    assert model.head.columns.tolist() == [span.start, span.stop]
    assert model.head.weight.shape[1] == span.stop - span.start


def test_samples_may_be_a_plain_list(encoder, digits, fitted):
    listed = [digits[row] for row in range(len(digits))]
    model = OffTheShelf(jitter=1).fit(encoder, listed)
    assert model.classes == ("0", "1", "2")
    assert torch.equal(model.head.weight, fitted.head.weight)


def test_the_given_model_is_left_as_it_was(encoder, digits, fitted):
    assert encoder.head is None
    assert encoder.backbone.num_classes == 1000
    assert fitted.backbone is not encoder.backbone


def test_what_cannot_be_fitted_is_refused(encoder, digits):
    one = digits.where(digits.table["label"] == 0)
    with pytest.raises(DataError, match="nothing to tell apart"):
        OffTheShelf().fit(encoder, one)
    with pytest.raises(ArgumentError, match="no layer 'stage9'"):
        OffTheShelf(layer="stage9").fit(encoder, digits)
    with pytest.raises(ArgumentError, match="power"):
        OffTheShelf(power=0)
    broken = open_vision("untrained:test_resnet", input_size=(32, 32), seed=1)
    next(broken.backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        OffTheShelf(jitter=1).fit(broken, digits)
