"""Encoders, patches of an image, whitening."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beholder.core.errors import DataError, ModelError
from beholder.models.open import open_vision
from beholder.retrieve.embed import PcaWhitening, VisionEncoder, patches
from beholder.retrieve.query import spatial_distance


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    return VisionEncoder(open_vision("untrained:test_resnet", input_size=(32, 32)))


@given(height=st.integers(80, 200), width=st.integers(80, 200), level=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_patches_of_a_level_are_equal_and_cover_the_image(height, width, level):
    place = np.arange(height * width).reshape(height, width)
    found = patches(place, level)[sum(h * h for h in range(1, level)) :]
    assert len(found) == level**2
    assert len({patch.shape for patch in found}) == 1
    painted = np.zeros(height * width, bool)
    for patch in found:
        painted[patch.ravel()] = True
    assert painted.all()
    side = found[0].shape[0] / height
    assert side == pytest.approx(2 / (level + 1), abs=1 / height)


def test_four_levels_are_thirty_patches_and_the_first_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    found = patches(image, 4)
    assert len(found) == 1 + 4 + 9 + 16
    assert np.array_equal(found[0], image)


def test_centres_lie_on_a_regular_grid():
    place = np.arange(120)[:, None] * np.ones(120, int)
    tops = sorted({int(patch.min()) for patch in patches(place, 3)[5:]})
    assert tops == [0, 30, 60]


def test_too_small_an_image_for_its_levels_is_refused():
    with pytest.raises(DataError, match="at level 4"):
        patches(np.zeros((79, 200, 3), np.uint8), 4)
    assert len(patches(np.zeros((8, 8, 3), np.uint8), 1)) == 1


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(encoder):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + 5 * i, 30, 3), dtype=np.uint8) for i in range(4)]
    together = encoder.encode_image(images)
    assert together.shape == (4, encoder.dim)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    alone = torch.cat([encoder.encode_image([image]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_fingerprint_is_that_of_weights_and_preprocessing(encoder):
    same = VisionEncoder(open_vision("untrained:test_resnet", input_size=(32, 32)))
    size = VisionEncoder(open_vision("untrained:test_resnet", input_size=(48, 48)))
    weights = VisionEncoder(open_vision("untrained:test_resnet", input_size=(32, 32), seed=1))
    assert encoder.fingerprint == same.fingerprint
    assert len({encoder.fingerprint, size.fingerprint, weights.fingerprint}) == 3


def test_a_backbone_knows_no_words(encoder):
    with pytest.raises(ModelError, match="no text tower"):
        encoder.encode_text(["a cat"])


def test_an_exact_patch_is_nearer_by_patches_than_as_a_whole(encoder):
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    reference = blocks.repeat(16, 0).repeat(16, 1)
    query = patches(reference, 2)[3]
    vectors = encoder.encode_image(patches(reference, 2)).numpy()
    asked = encoder.encode_image([query]).numpy()
    assert spatial_distance(asked, vectors) == pytest.approx(0, abs=1e-5)
    assert spatial_distance(asked, vectors[:1]) > 1e-3


def test_whitened_reference_vectors_have_the_identity_as_covariance():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 20)) @ rng.normal(size=(20, 20))
    whitening = PcaWhitening(10).fit(vectors)
    np.testing.assert_allclose(np.cov(whitening.whiten(vectors).T), np.eye(10), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(whitening(vectors), axis=1), 1)


def test_no_more_directions_are_whitened_than_the_vectors_have():
    vectors = np.random.default_rng(0).normal(size=(6, 20))
    assert PcaWhitening().fit(vectors)(vectors).shape == (6, 5)
    with pytest.raises(DataError, match="no directions"):
        PcaWhitening().fit(vectors[:1])


def test_the_power_comes_after_the_whitening():
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    plain = PcaWhitening().fit(vectors)
    rooted = PcaWhitening(power=0.5).fit(vectors)(vectors)
    white = plain.whiten(vectors)
    expected = np.sign(white) * np.sqrt(np.abs(white))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rooted, expected)
