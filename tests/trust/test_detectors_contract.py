"""What every registered detector keeps to: digits are trusted, noise is not."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from beholder.core.errors import ArgumentError, MissingExtraError
from beholder.core.model import VisionModel
from beholder.core.registry import Entry, systems
from beholder.data.sources import open_images
from beholder.metrics.detection import auroc
from beholder.models.open import open_vision
from beholder.trust.detectors.base import (
    CalibrationError,
    Detector,
    DetectorError,
    FeatureDetector,
    NotFittedError,
    apart,
)
from beholder.trust.detectors.levels import Encoder
from beholder.trust.detectors.pictures import Pictures

DETECTORS = systems("detector")
every = pytest.mark.parametrize("entry", DETECTORS, ids=lambda entry: entry.name)
TRUSTED, JUDGED = 120, 40
LOWER = {"rmd": 0.8}
"""It takes out what is far from everything, which noise is: made for what is near."""
ROUNDING = {"atol": 1e-4, "rtol": 1e-4}
"""pytorch-ood subtracts distances in float32."""


@functools.cache
def digits() -> tuple[Tensor, np.ndarray]:
    """uint8 [N, 3, 8, 8], and what they show."""
    images = open_images("digits")
    pixels = [images.read(row) for row in range(TRUSTED + JUDGED)]
    labels = images.table["label"].to_numpy()[: len(pixels)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), labels


@functools.cache
def noise() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)


@functools.cache
def classifier() -> VisionModel:
    """A random network whose last layer was fitted to digits."""
    model = open_vision("untrained:test_efficientnet", input_size=(64, 64))
    images, labels = digits()
    z = Encoder(model).read(Pictures.of(images))["pooled"].numpy()
    mean, deviation = z.mean(0), z.std(0) + 1e-6
    last = LogisticRegression(max_iter=500).fit((z - mean) / deviation, labels)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.backbone.reset_classifier(10)
        layer = model.backbone.get_classifier()
        weight = last.coef_ / deviation
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(last.intercept_ - weight @ mean))
    model.classes = tuple("0123456789")
    return model


def made(entry: Entry) -> Detector:
    try:
        return entry.load()()
    except MissingExtraError as missing:
        pytest.skip(str(missing))


def fit(entry: Entry, seed: int = 0, calibration: float = 0.25) -> Detector:
    """On trusted digits with their labels."""
    images, labels = digits()
    pictures = Pictures.of(images[:TRUSTED])
    known = Pictures(pictures.reader, pictures.ids, pictures.units, labels[:TRUSTED])
    detector = made(entry)
    against = noise()[:20] if detector.supervision == "pairs" else None
    return detector.fit(
        known, against=against, model=classifier(), seed=seed, calibration=calibration
    )


@functools.cache
def fitted(entry: Entry) -> Detector:
    return fit(entry)


@functools.cache
def good(entry: Entry) -> Tensor:
    return fitted(entry).score(digits()[0][TRUSTED:]).image


@every
def test_noise_is_less_trustworthy_than_digits(entry):
    """A linear layer is sure even of noise, so detectors that read nothing but its answers are
    given answers: sure ones and unsure ones."""
    detector = fitted(entry)
    if getattr(detector, "needs_logits", False):
        rng = torch.Generator().manual_seed(0)
        unsure = torch.rand(60, 10, generator=rng)
        sure = unsure + 9 * torch.eye(10).repeat(6, 1)
        trusted, bad = (detector.score_features({"logits": x}) for x in (sure, unsure))
    else:
        trusted, bad = good(entry), detector.score(noise()[20:]).image
    assert trusted.isfinite().all()
    assert auroc(trusted.numpy(), bad.numpy()) >= LOWER.get(entry.name, 0.9)


@every
def test_score_of_an_image_does_not_depend_on_its_neighbours_or_the_order(entry):
    images = digits()[0][TRUSTED : TRUSTED + 11]
    expected = good(entry)[:11]
    alone = torch.cat([fitted(entry).score(images[row : row + 1]).image for row in (0, 5)])
    turned = fitted(entry).score(images.flip(0)).image.flip(0)
    smaller = fitted(entry).score(images, batch_size=3).image
    torch.testing.assert_close(alone, expected[[0, 5]], **ROUNDING)
    torch.testing.assert_close(turned, expected, **ROUNDING)
    torch.testing.assert_close(smaller, expected, **ROUNDING)


@every
def test_the_same_seed_gives_the_same_bits(entry):
    state = torch.random.get_rng_state()
    again = fit(entry)
    assert torch.equal(again.score(digits()[0][TRUSTED:]).image, good(entry))
    assert again.threshold(0.1) == fitted(entry).threshold(0.1)
    assert torch.equal(state, torch.random.get_rng_state())


@every
def test_a_saved_detector_gives_the_same_scores_and_thresholds(entry, tmp_path: Path):
    place = fitted(entry).save(tmp_path / "guard")
    loaded = Detector.load(place)
    assert torch.equal(loaded.score(digits()[0][TRUSTED:]).image, good(entry))
    assert loaded.threshold(0.1) == fitted(entry).threshold(0.1)
    assert loaded.options == fitted(entry).options
    assert not {path.suffix for path in place.rglob("*.*")} - {".json", ".safetensors"}


@every
def test_scores_before_fit_and_thresholds_before_calibration_are_errors(entry):
    with pytest.raises(NotFittedError, match=entry.name):
        made(entry).score(noise())
    with pytest.raises(NotFittedError):
        made(entry).save("nowhere")
    with pytest.raises(CalibrationError, match="not calibrated"):
        fit(entry, calibration=0).threshold(0.05)


@every
def test_images_that_cannot_be_are_refused(entry):
    for images in (
        [],
        torch.zeros(0, 3, 8, 8),
        torch.full((2, 3, 8, 8), torch.nan),
        torch.full((2, 3, 8, 8), torch.inf),
        torch.full((2, 3, 8, 8), 255.0),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.zeros(2, 4, 8, 8),
        torch.zeros(3, 8, 8),
        [np.zeros((8, 8, 3), np.int32)],
        [np.zeros((8, 8, 2), np.uint8)],
        ["no/such/image.png"],
        "digits",
    ):
        with pytest.raises(DetectorError):
            fitted(entry).score(images)


@every
def test_odd_images_get_a_finite_score_each(entry):
    images = [
        np.zeros((1, 1, 3), np.uint8),
        np.full((40, 20), 255, np.uint8),
        np.zeros((9, 7, 1), np.uint8),
        np.full((30, 30, 4), 128, np.uint8),
        np.full((20, 20), 40_000, np.uint16),
        np.full((8, 8, 3), 0.5, np.float32),
        Image.new("CMYK", (12, 9)),
        Image.new("1", (12, 9)),
    ]
    scores = fitted(entry).score(images).image
    assert scores.shape == (len(images),)
    assert scores.isfinite().all()


@every
def test_a_path_an_array_and_a_tensor_of_one_picture_score_alike(entry, tmp_path: Path):
    image = digits()[0][TRUSTED]
    array = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array).save(tmp_path / "digit.png")
    kinds = [tmp_path / "digit.png"], [Image.fromarray(array)], [array]
    expected = good(entry)[:1]
    for images in kinds:
        torch.testing.assert_close(fitted(entry).score(images).image, expected, **ROUNDING)
    one_channel = fitted(entry).score(image[None, :1]).image
    torch.testing.assert_close(one_channel, expected, **ROUNDING)


@every
def test_blank_references_are_refused_or_give_numbers(entry):
    detector = made(entry)
    blank = torch.zeros(30, 3, 8, 8)
    against = noise() if detector.supervision == "pairs" else None
    try:
        detector.fit(blank, against=against, model=classifier())
    except DetectorError:
        return
    assert detector.score(noise()).image.isfinite().all()


@every
def test_references_are_not_refused_more_than_promised(entry):
    images = digits()[0][:TRUSTED]
    decision = fitted(entry).decide(images, fpr=0.1)
    pictures = Pictures.of(images)
    labelled = Pictures(pictures.reader, pictures.ids, pictures.units, digits()[1][:TRUSTED])
    _, aside = apart(labelled, 0.25, seed=0)
    refused = decision.refused.double()
    assert refused[aside].mean() <= 0.1
    assert refused.mean() <= 0.1 + 3 * (0.1 * 0.9 / len(aside)) ** 0.5
    assert torch.equal(decision.refused, decision.p_value <= 0.1 + 1e-12)
    assert f"{int(refused.sum())} of {TRUSTED}" in decision.reason


@every
def test_no_more_images_than_a_batch_are_in_memory_at_once(entry, monkeypatch):
    detector, held = fitted(entry), []

    def watched(forward):
        def call(images: Tensor):
            held.append(len(images))
            return forward(images)

        return call

    if isinstance(detector, FeatureDetector):
        model = detector.encoder.model
        monkeypatch.setattr(model, "normalise", watched(model.normalise))
    else:
        monkeypatch.setattr(detector, "score_batch", watched(detector.score_batch))
    detector.score(noise()[:1].expand(70, -1, -1, -1), batch_size=16)
    assert max(held) <= 16
    assert sum(held) >= 70


@every
def test_maps_have_the_size_of_the_image(entry):
    scores = fitted(entry).score([np.zeros((30, 20, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])
    if scores.pixel is None:
        with pytest.raises(CalibrationError, match="pixels"):
            fitted(entry).threshold(0.1, level="pixel")
    else:
        assert [tuple(places.shape) for places in scores.pixel] == [(30, 20), (8, 9)]


def test_a_saved_detector_gives_the_same_bits_in_a_new_process(tmp_path: Path):
    entry = next(entry for entry in DETECTORS if entry.name == "gaussian_ad")
    fitted(entry).save(tmp_path / "guard")
    np.save(tmp_path / "images.npy", digits()[0][TRUSTED:].numpy())
    code = (
        "import sys, json, numpy, torch; from beholder.trust.detectors.base import Detector; "
        "images = torch.from_numpy(numpy.load('images.npy')); "
        "print(json.dumps(Detector.load('guard').score(images).image.tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == good(entry).tolist()


def test_false_refusal_rates_that_are_none_are_refused():
    detector = fitted(next(entry for entry in DETECTORS if entry.name == "knn"))
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        detector.threshold(1.5)
    with pytest.raises(CalibrationError, match=r"30 images .* needs 99"):
        detector.threshold(0.01)
    with pytest.raises(DetectorError, match="no probabilities"):
        detector.threshold(None)


def test_every_detector_says_what_it_is():
    for entry in DETECTORS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = type(made(entry))
        assert target.kind in ("ood", "anomaly", "generated", "backdoor")
        assert target.supervision in ("none", "one-class", "labels", "pairs")
        assert (target.__doc__ or "").strip()
        assert issubclass(target, FeatureDetector) or not target.needs_model or target.learn
