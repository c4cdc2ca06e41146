"""Row 14: the authors' own figures, closed forms, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from goldens import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from beholder.core.errors import ArgumentError
from beholder.metrics.detection import auroc
from beholder.trust.detectors.base import CalibrationError, DetectorError
from beholder.trust.detectors.gaussian_ad import (
    Gaussian,
    GaussianAD,
    chi2_threshold,
    principal,
)

P = 1 - 0.9973


def normal(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def recorded() -> tuple[np.ndarray, torch.Tensor, dict, dict]:
    record = golden("14_gaussian_ad.stats")
    train, query = (np.array(record["inputs"][name]) for name in ("train", "query"))
    close = {"atol": record["tolerance"]["absolute"], "rtol": record["tolerance"]["relative"]}
    return train, torch.from_numpy(query), record["outputs"], close


def test_mean_precision_and_shrinkage_are_the_authors() -> None:
    train, _, outputs, close = recorded()
    found = Gaussian.fit(train)
    np.testing.assert_allclose(found.mean, outputs["mean"], **close)
    np.testing.assert_allclose(found.precision.flatten(), outputs["precision"], **close)
    shrinkage = golden("14_gaussian_ad.stats")["shrinkage"]
    assert LedoitWolf().fit(train).shrinkage_ == pytest.approx(shrinkage, rel=1e-3)


@pytest.mark.parametrize("distance", ["mahalanobis", "sed", "l2"])
def test_distances_are_the_authors(distance) -> None:
    train, query, outputs, close = recorded()
    found = Gaussian.fit(train, distance).distance(query)
    np.testing.assert_allclose(found, outputs[distance], **close)


@pytest.mark.parametrize("share", [0.8, 0.95])
@pytest.mark.parametrize("keep", ["pca", "npca"])
def test_directions_kept_and_distances_in_them_are_the_authors(keep, share: float) -> None:
    train, query, outputs, close = recorded()
    rows = principal(train, share, keep)
    assert len(rows) == outputs[f"{keep}_{share}_rows"][0]
    found = Gaussian.fit(train, "mahalanobis", rows).distance(query)
    np.testing.assert_allclose(found, outputs[f"{keep}_{share}_mahalanobis"], **close)


@pytest.mark.parametrize(
    ("dimensions", "threshold"),
    [(1, 3.0000), (2, 3.4393), (10, 5.1866), (100, 11.9936), (448, 23.1469)],
)
def test_the_chi2_threshold_has_its_published_values(dimensions: int, threshold: float) -> None:
    assert chi2_threshold(P, dimensions) == pytest.approx(threshold, abs=1e-4)
    if dimensions in (1, 2, 10, 100, 448):
        own = golden("14_gaussian_ad.stats")["outputs"][f"threshold_{dimensions}"][0]
        assert chi2_threshold(P, dimensions) == pytest.approx(own, abs=1e-3)


def test_the_chi2_threshold_keeps_its_promise_on_gaussian_data() -> None:
    beyond = normal(100_000, 10).norm(dim=1) > chi2_threshold(P, 10)
    assert float(beyond.double().mean()) == pytest.approx(0.0027, abs=0.0005)


def test_of_isotropic_data_the_distance_is_the_length() -> None:
    z = normal(50_000, 6).double()
    query = normal(20, 6, seed=1)
    found = Gaussian.fit(z.numpy()).distance(query)
    torch.testing.assert_close(found, query.double().norm(dim=1), rtol=0.02, atol=0.02)


def test_the_precision_is_sklearns() -> None:
    z = (normal(60, 9) @ normal(9, 9, seed=2)).double().numpy()
    expected = LedoitWolf().fit(z).precision_
    np.testing.assert_allclose(Gaussian.fit(z).precision, expected, rtol=1e-5, atol=1e-5)


def test_an_affine_map_of_all_data_changes_no_distance() -> None:
    z, query = normal(200_000, 4).double(), normal(10, 4, seed=1).double()
    matrix, shift = normal(4, 4, seed=3).double() + 3 * torch.eye(4), 5.0
    plain = Gaussian.fit(z.numpy()).distance(query)
    moved = Gaussian.fit((z @ matrix + shift).numpy()).distance(query @ matrix + shift)
    torch.testing.assert_close(moved, plain, rtol=5e-3, atol=1e-3)  # shrinkage is not affine


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 100))
def test_both_kinds_of_directions_overlap_by_two_and_cover_all(share: float, seed: int) -> None:
    z = normal(40, 7, seed).double().numpy()
    first, last = principal(z, share, "pca"), principal(z, share, "npca")
    if len(first) > 1:
        assert len(first) + len(last) == 7 + 2
        np.testing.assert_array_equal(first[-2:], last[:2])
    else:  # j = 0: nothing stands before it
        np.testing.assert_array_equal(last, principal(z, 0.9999999, "pca"))


def test_a_badly_conditioned_precision_gives_no_nan() -> None:
    z = normal(30, 5)
    z[:, 4] = z[:, 3] * (1 + 1e-7)
    detector = GaussianAD().fit_levels({"pooled": z})
    assert detector.score_levels({"pooled": z}).image.isfinite().all()


def test_one_image_alone_scores_as_in_a_batch() -> None:
    detector = GaussianAD().fit_levels({"a": normal(50, 5), "b": normal(50, 3, 1)})
    levels = {"a": normal(64, 5, 2), "b": normal(64, 3, 3)}
    together = detector.score_levels(levels).image
    alone = [detector.score_levels({k: v[i : i + 1] for k, v in levels.items()}) for i in (0, 63)]
    torch.testing.assert_close(torch.cat([s.image for s in alone]), together[[0, 63]])


def test_the_score_is_the_mean_over_levels() -> None:
    detector = GaussianAD().fit_levels({"a": normal(50, 5), "b": normal(50, 3, 1)})
    scores = detector.score_levels({"a": normal(9, 5, 2), "b": normal(9, 3, 3)})
    parts = torch.stack([scores.extra["a"], scores.extra["b"]]).mean(0)
    torch.testing.assert_close(scores.image.double(), parts.double(), rtol=1e-6, atol=1e-6)


def test_robust_forgets_the_anomalies_among_the_references() -> None:
    clean, foreign = normal(190, 6), normal(10, 6, 1) * 0.3 + 8
    mixed = {"pooled": torch.cat([clean, foreign])}
    bad = {"pooled": normal(50, 6, 2) * 0.3 + 8}
    good = {"pooled": normal(50, 6, 3)}

    def gap(robust: bool) -> float:
        detector = GaussianAD(robust=robust).fit_levels(mixed)
        return float(
            (detector.score_levels(bad).image.mean()) / detector.score_levels(good).image.mean()
        )

    assert gap(True) > 2 * gap(False)


def test_correlation_tells_what_lengths_do_not() -> None:
    z = normal(500, 1) @ torch.ones(1, 4) + 0.05 * normal(500, 4, 1)
    odd = z[:100].clone()
    odd[:, 0] = -odd[:, 0]
    fresh = normal(100, 1, 5) @ torch.ones(1, 4) + 0.05 * normal(100, 4, 6)
    found = {}
    for distance in ("mahalanobis", "sed"):
        detector = GaussianAD(distance=distance).fit_levels({"pooled": z})
        good, bad = (detector.score_levels({"pooled": x}).image.numpy() for x in (fresh, odd))
        found[distance] = auroc(good, bad)
    assert found["mahalanobis"] > 0.95
    assert found["sed"] < 0.7


def test_chi2_is_offered_for_one_mahalanobis_level_only() -> None:
    one = GaussianAD().fit_levels({"pooled": normal(50, 10)})
    assert one.threshold(P, method="chi2") == pytest.approx(5.1866, abs=1e-4)
    two = GaussianAD().fit_levels({"a": normal(50, 10), "b": normal(50, 10)})
    with pytest.raises(ArgumentError, match="one level"):
        two.threshold(P, method="chi2")
    with pytest.raises(CalibrationError):
        one.threshold(0.05)


def test_what_has_no_variance_is_refused_and_few_images_are_warned_of() -> None:
    with pytest.raises(DetectorError, match="no variance"):
        GaussianAD().fit_levels({"pooled": normal(1, 4)})
    with pytest.raises(DetectorError, match="same features"):
        GaussianAD().fit_levels({"pooled": torch.ones(20, 4)})
    with pytest.raises(DetectorError, match="not finite"):
        GaussianAD().fit_levels({"pooled": torch.full((20, 4), torch.nan)})
    with pytest.warns(UserWarning, match="9 images are few"):
        GaussianAD().fit_levels({"pooled": normal(9, 4)})


@pytest.mark.parametrize(
    ("options", "said"),
    [({"variance": 1.0}, "variance = 1.0"), ({"augment": -1}, "augment = -1")],
)
def test_options_that_make_no_sense_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        GaussianAD(**options)


def test_a_level_that_is_not_there_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"no level 'stage9'.*\n.*pooled"):
        GaussianAD(levels="stage9").fit_levels({"pooled": normal(20, 4)})
