"""Heads on made-up features: right, honest, and the same twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.svm import SVC

from beholder.core.features import SHARD, Features, View
from beholder.models.classifier_heads import (
    BlendHead,
    Head,
    KernelHead,
    LinearHead,
    copy_calibration,
    load_head,
    save_head,
)
from beholder.train import heads
from beholder.train.heads import Candidate, Problem, decide, grid, probability, raw_logits, select

DIM = 12
KINDS = {
    "logistic": Candidate("logistic", 1e-1),
    "kernel": Candidate("kernel", 3.0),
    "nearest mean": Candidate("nearest_mean"),
    "blend": Candidate("blend", parts=(Candidate("logistic", 1e-2), Candidate("kernel", 1.0))),
}


def clouds(
    count: int, classes: int, seed: int = 0, gap: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds [count, DIM] around corners, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return rng.normal(size=(count, DIM)) + gap * np.eye(DIM)[labels], labels


def scale_of(image: np.ndarray) -> np.ndarray:
    """The deviations, none below their upper quartile."""
    deviation = image.std(0)
    return np.maximum(deviation, np.quantile(deviation, 0.75))


def views_of(image: np.ndarray, mirror: np.ndarray | None = None) -> Features:
    def cut(array: np.ndarray) -> list[np.ndarray]:
        return [
            array[start : start + SHARD].astype(np.float32) for start in range(0, len(array), SHARD)
        ]

    views: dict[View, list[np.ndarray]] = {"image": cut(image)}
    if mirror is not None:
        views["mirror"] = cut(mirror)
    return Features(views, {"pooled": slice(0, DIM)}, DIM)


def problem(
    image: np.ndarray,
    labels: np.ndarray,
    mirror: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    folds: int = 4,
) -> Problem:
    rows = np.arange(len(labels)) if rows is None else rows
    views: list[View] = ["image"] if mirror is None else ["image", "mirror"]
    soft = np.eye(labels.max() + 1)[labels]
    fold = np.arange(len(rows)) // 2 % folds
    return Problem(views_of(image, mirror), rows, labels[rows], soft[rows], fold, views)


def fitted(kind: str, classes: int, count: int = 160) -> tuple[Head, Problem, np.ndarray]:
    """A calibrated head of a kind, its problem, and the cross-fitted decisions."""
    image, labels = clouds(count, classes)
    shaken = image + 0.1 * np.random.default_rng(5).normal(size=image.shape)
    made = problem(image, labels, shaken)
    decisions = made.cross_fit(KINDS[kind])
    head = made.fit(KINDS[kind])
    head.fit_calibration(decisions, labels)
    return head.eval(), made, decisions


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_tells_separate_clouds_apart(kind: str, classes: int) -> None:
    head, _, decisions = fitted(kind, classes)
    image, labels = clouds(200, classes, seed=1)
    found = probability(head, decide(head, views_of(image), np.arange(200)))
    assert found.shape == (200, classes)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert (found.argmax(1) == labels).mean() > 0.9
    own = probability(head, decisions)
    assert 0 < -np.log(own[np.arange(160), clouds(160, classes)[1]]).mean() < 0.35


@pytest.mark.parametrize("classes", [2, 4])
def test_nystroem_takes_over_above_one_block(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = clouds(300, classes)
    monkeypatch.setattr(heads, "BLOCK", 100)
    monkeypatch.setattr(heads, "LANDMARKS", 60)
    made = problem(image, labels, image + 0.01)
    assert made.design.views == ["image"]
    head = made.fit(KINDS["kernel"])
    assert isinstance(head, KernelHead)
    assert head.points.shape == (60, DIM)
    for decisions in (
        made.cross_fit(KINDS["kernel"]),
        decide(head, views_of(clouds(300, classes, seed=1)[0]), np.arange(300)),
    ):
        found = decisions.argmax(1) if classes > 2 else (decisions[:, 0] > 0).astype(int)
        assert (found == labels).mean() > 0.9


def test_a_kernel_head_never_outgrows_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = clouds(200, 2)
    monkeypatch.setattr(heads, "LARGEST_MIB", 70 * (2 * DIM + 4) / 0.9 / 2**20)
    head = problem(image, labels).fit(KINDS["kernel"])
    assert isinstance(head, KernelHead)
    assert 68 <= len(head.points) <= 70


def test_support_vectors_decide_like_scikit_learn() -> None:
    image, labels = clouds(120, 2, gap=1.0)
    head = problem(image, labels).fit(Candidate("kernel", 3.0))
    new = clouds(50, 2, seed=3, gap=1.0)[0]
    mean, scale = image.mean(0), scale_of(image)
    peer = SVC(C=3.0, gamma=1 / DIM).fit((image - mean) / scale, labels)
    expected = peer.decision_function((new - mean) / scale)
    np.testing.assert_allclose(
        decide(head, views_of(new), np.arange(50))[:, 0], expected, atol=5e-3
    )


def test_several_classes_are_one_against_the_rest_like_scikit_learn() -> None:
    image, labels = clouds(120, 3, gap=1.0)
    decisions = decide(
        problem(image, labels).fit(Candidate("kernel", 1.0, 0.5)), views_of(image), np.arange(120)
    )
    rows = (image - image.mean(0)) / scale_of(image)
    for k in range(3):
        peer = SVC(C=1.0, gamma=0.5 / DIM).fit(rows, labels == k).decision_function(rows)
        np.testing.assert_allclose(decisions[:, k], peer, atol=5e-3)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", ["logistic", "kernel", "nearest mean"])
def test_the_deployed_head_decides_as_the_cross_fit_did(kind: str, classes: int) -> None:
    image, labels = clouds(120, classes, gap=1.5)
    made = problem(image, labels, image + 0.05)
    masks = [made.fold_of_row != k for k in range(4)]
    index = np.arange(120)
    for fit in made._fit(KINDS[kind], masks):
        np.testing.assert_allclose(
            decide(fit.head(), views_of(image), index), fit.decide(index), atol=5e-3, rtol=2e-3
        )


def test_held_rows_are_decided_by_heads_that_did_not_see_them() -> None:
    image, labels = clouds(80, 2, gap=0.0)  # nothing to learn
    made = problem(image, labels, folds=4)
    decisions = made.cross_fit(Candidate("kernel", 100.0))[:, 0]
    seen = decide(made.fit(Candidate("kernel", 100.0)), views_of(image), np.arange(80))[:, 0]
    assert ((seen > 0) == labels).all()
    assert 0.3 < ((decisions > 0) == labels).mean() < 0.7


def test_decisions_average_the_image_and_its_mirror() -> None:
    image, labels = clouds(100, 2)
    mirror = clouds(100, 2, seed=9)[0]
    made = problem(image, labels, mirror)
    head = made.fit(KINDS["kernel"])
    whole = select(
        views_of(image, mirror),
        np.arange(100),
        labels,
        np.eye(2)[labels],
        np.arange(100),
        candidates=[KINDS["kernel"]],
    )
    assert whole.mirror
    both = [decide(head, views_of(image, mirror), np.arange(100), v) for v in ("image", "mirror")]
    found = whole.decide(views_of(image, mirror), np.arange(100))
    np.testing.assert_allclose(found, np.mean(both, 0), atol=1e-5)


def test_above_one_block_the_mirror_is_judged_though_not_learned_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, labels = clouds(120, 2)
    mirror = image.copy()
    mirror[:, :2] = image[:, [1, 0]]  # the mirror image of class 0 looks like class 1
    monkeypatch.setattr(heads, "BLOCK", 150)
    made = problem(image, labels, mirror)
    assert made.design.views == ["image"]
    single = problem(image, labels)
    alone, both = (p.cross_fit(KINDS["logistic"])[:, 0] for p in (single, made))
    assert ((alone > 0) == labels).mean() > 0.95
    assert np.abs(both).mean() < 0.3 * np.abs(alone).mean()


@pytest.mark.parametrize("block", [8_000, 150])
def test_the_mirror_is_dropped_where_left_and_right_differ(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, labels = clouds(240, 2, gap=2.0)
    mirror = image.copy()
    mirror[:, :2] = image[:, [1, 0]]
    monkeypatch.setattr(heads, "BLOCK", block)
    found = select(
        views_of(image, mirror), np.arange(240), labels, np.eye(2)[labels], np.arange(240)
    )
    assert not found.mirror
    assert found.without_mirror is not None
    assert found.without_mirror > max(found.scores.values())
    hits = found.probability(found.decide(views_of(image, mirror), np.arange(240))).argmax(1)
    assert (hits == labels).mean() > 0.95


def test_logits_are_calibrated_on_decisions_of_unseen_images() -> None:
    rng = np.random.default_rng(0)
    image, labels = clouds(600, 2, gap=1.0)
    labels = np.where(rng.random(600) < 0.2, 1 - labels, labels)  # a fifth is wrong
    found = select(views_of(image), np.arange(600), labels, np.eye(2)[labels], np.arange(600))
    confidence = found.probability(found.decisions).max(1)
    right = found.probability(found.decisions).argmax(1) == labels
    assert abs(confidence.mean() - right.mean()) < 0.03
    new, truth = clouds(600, 2, seed=1, gap=1.0)
    truth = np.where(rng.random(600) < 0.2, 1 - truth, truth)
    unseen = found.probability(found.decide(views_of(new), np.arange(600)))
    assert abs(unseen.max(1).mean() - (unseen.argmax(1) == truth).mean()) < 0.06


def test_raw_logits_of_two_classes_are_nought_and_the_margin() -> None:
    head, _, decisions = fitted("kernel", 2)
    np.testing.assert_allclose(
        raw_logits(head, decisions), np.stack([0 * decisions[:, 0], decisions[:, 0]], 1)
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_head_is_differentiable(kind: str) -> None:
    head, _, _ = fitted(kind, 4)
    descriptor = torch.zeros(1, DIM, requires_grad=True)
    head.logits(head(descriptor))[0, 1].backward()
    assert descriptor.grad is not None
    assert descriptor.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_head_goes_through_the_disk_bit_by_bit(kind: str, classes: int, tmp_path) -> None:
    head, _, _ = fitted(kind, classes)
    save_head(head, {"note": "kept"}, tmp_path)
    again, facts = load_head(tmp_path)
    assert facts["note"] == "kept"
    descriptor = torch.from_numpy(clouds(50, classes, seed=2)[0]).float()
    kept = again.state_dict()
    assert list(kept) == list(head.state_dict())
    assert all(torch.equal(kept[key], value) for key, value in head.state_dict().items())
    with torch.inference_mode():
        found, expected = again.logits(again(descriptor)), head.logits(head(descriptor))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_calibration_is_copied_part_by_part() -> None:
    source, made, _ = fitted("blend", 2)
    target = made.fit(KINDS["blend"])
    copy_calibration(source, target)
    assert isinstance(source, BlendHead)
    assert isinstance(target, BlendHead)
    for old, new in zip(source.parts, target.parts, strict=True):
        assert torch.equal(old.calibration.slope, new.calibration.slope)


def test_the_same_seed_gives_the_same_bits() -> None:
    image, labels = clouds(150, 3, gap=1.0)
    features, soft = views_of(image, image + 0.1), np.eye(3)[labels]
    a, b = (
        select(features, np.arange(150), labels, soft, np.arange(150), seed=4) for _ in range(2)
    )
    assert a.scores == b.scores
    np.testing.assert_array_equal(a.decisions, b.decisions)
    state = b.head.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in a.head.state_dict().items())


def test_the_blend_competes_with_its_parts() -> None:
    image, labels = clouds(150, 2, gap=1.0)
    found = select(views_of(image), np.arange(150), labels, np.eye(2)[labels], np.arange(150))
    assert len(found.scores) == 3 + 6 + 1
    assert sum(" + " in name for name in found.scores) == 1
    assert found.scores[str(found.candidate)] == max(found.scores.values())


def test_the_grid_follows_the_number_of_images() -> None:
    assert grid(500, 4) == [Candidate("nearest_mean")]
    assert len(grid(999, 5)) == 3 + 6
    assert len(grid(1_000, 5)) == 3 + 3
    assert {candidate.kind for candidate in grid(50_001, 9)} == {"logistic"}


@pytest.mark.parametrize(("rare", "metric"), [(38, "balanced accuracy"), (60, "accuracy")])
def test_a_class_below_a_fifth_is_scored_in_balance(rare: int, metric: str) -> None:
    image, _ = clouds(200, 1)
    labels = (np.arange(200) < rare).astype(int)
    image[labels == 1, 3] += 3
    found = select(
        views_of(image),
        np.arange(200),
        labels,
        np.eye(2)[labels],
        np.arange(200),
        candidates=[KINDS["logistic"]],
    )
    assert found.metric == metric


def test_a_class_of_four_images_takes_the_nearest_mean() -> None:
    image, labels = clouds(90, 2)
    labels[:4] = 2
    image[:4] = 8 * np.eye(DIM)[2] + 0.5 * image[4:8]
    found = select(views_of(image), np.arange(90), labels, np.eye(3)[labels], np.arange(90))
    assert found.candidate.kind == "nearest_mean"
    assert isinstance(found.head, LinearHead)
    assert np.isfinite(found.decisions).all()
    right = found.probability(found.decide(views_of(image), np.arange(90))).argmax(1) == labels
    assert right[:4].all()
    assert right[labels == 1].mean() > 0.9


@pytest.mark.parametrize("kind", ["logistic", "kernel", "nearest mean", "blend"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_class_that_a_fold_lacks_breaks_nothing(kind: str, classes: int) -> None:
    image, labels = clouds(60, classes)
    fold = np.where(labels == 1, 0, np.arange(60) % 3)  # class 1 lies in fold 0 as a whole
    soft = np.eye(classes)[labels]
    made = Problem(views_of(image), np.arange(60), labels, soft, fold, ["image"])
    decisions = made.cross_fit(KINDS[kind])
    assert np.isfinite(decisions).all()
    head = made.fit(KINDS[kind])
    head.fit_calibration(decisions, labels)
    found = probability(head, decide(head, views_of(image), np.arange(60)))
    assert np.isfinite(found).all()


def test_one_unit_or_one_class_still_gives_a_head() -> None:
    image, labels = clouds(40, 2)
    one_unit = select(views_of(image), np.arange(40), labels, np.eye(2)[labels], np.zeros(40, int))
    assert max(one_unit.scores.values()) > 0.9
    none = np.zeros(40, int)
    one_class = select(views_of(image), np.arange(40), none, np.eye(2)[none], np.arange(40))
    assert (one_class.probability(one_class.decisions).argmax(1) == 0).all()


def test_no_rows_give_no_decisions() -> None:
    for kind in KINDS:
        head, _, _ = fitted(kind, 4)
        decisions = decide(head, views_of(clouds(5, 2)[0]), np.array([], int))
        assert probability(head, decisions).shape == (0, 4)


def test_the_means_share_one_shrunk_covariance() -> None:
    image, labels = clouds(60, 2, gap=1.0)
    head = problem(image, labels).fit(Candidate("nearest_mean"))
    assert isinstance(head, LinearHead)
    rows = (image - image.mean(0)) / scale_of(image)
    means = np.stack([rows[labels == k].mean(0) for k in range(2)])
    shrunk = LedoitWolf(assume_centered=True).fit(rows - means[labels])
    direction = np.linalg.solve(shrunk.covariance_, means[1] - means[0])
    np.testing.assert_allclose(head.weight[0], direction, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(head.bias[0], -direction @ means.mean(0), atol=1e-3)


def test_nearest_means_need_no_more_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = clouds(90, 3)
    whole = problem(image, labels).fit(Candidate("nearest_mean"))
    monkeypatch.setattr(heads, "BLOCK", 25)
    parts = problem(image, labels).fit(Candidate("nearest_mean"))
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, atol=1e-4, rtol=1e-4)


def test_standardisation_sees_the_training_part_only() -> None:
    image, labels = clouds(100, 2)
    image[50:] += 1000
    made = problem(image, labels, rows=np.arange(50))
    np.testing.assert_allclose(made.design.mean, image[:50].mean(0), atol=1e-4)
    np.testing.assert_allclose(made.design.scale, scale_of(image[:50]), atol=1e-4)


def test_a_constant_feature_does_no_harm() -> None:
    image, labels = clouds(60, 2)
    image[:, 5] = 7
    made = problem(image, labels)
    assert np.isfinite(made.cross_fit(KINDS["kernel"])).all()
    image[:] = 7
    assert (problem(image, labels).design.scale == 1).all()


def test_no_feature_is_scaled_by_less_than_the_upper_quartile_of_its_part() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(40, 10))
    image = (image - image.mean(0)) / image.std(0) * [1, 2, 3, 4, 5, 10, 20, 30, 40, 50]
    features = Features.of(image.astype(np.float32))
    features.layout = {"low": slice(0, 5), "high": slice(5, 10)}
    labels, fold = np.arange(40) % 2, np.arange(40) // 2 % 4
    views: list[View] = ["image"]
    told = features, np.arange(40), labels, np.eye(2)[labels], fold, views
    expected = [4, 4, 4, 4, 5, 40, 40, 40, 40, 50]
    np.testing.assert_allclose(Problem(*told).design.scale, expected, rtol=1e-5)
    expected = [4.75, 5, 25, 25, 30]  # quartiles of 4, 5 and of 10, 20, 30
    np.testing.assert_allclose(Problem(*told, slice(3, 8)).design.scale, expected, rtol=1e-5)


def test_what_was_almost_constant_cannot_decide_when_it_moves() -> None:
    image, labels = clouds(120, 2)
    image[:, 2] *= 1e-3
    moved = image.copy()
    moved[:, 2] += 0.5  # five hundred of its deviations
    head = problem(image, labels).fit(KINDS["kernel"])
    before, after = (decide(head, views_of(some), np.arange(120)) for some in (image, moved))
    assert np.abs(after - before).max() < 0.3
