"""What given models take, and how their outputs are read."""

import math

import pytest
import torch

from beholder.core.errors import ModelError
from beholder.models.intake import (
    are_probabilities,
    in_batches,
    intake_of,
    names_in_order,
    read_preprocess,
)


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8009]], True),
        ([[0.2, 0.8011]], False),
        ([[-0.1, 1.1]], False),
        ([[3.0, -2.0]], False),
        ([[0.2, 0.8], [0.3, 0.3]], False),
        ([[math.nan, 1.0]], False),
    ],
)
def test_probabilities_are_rows_between_zero_and_one_that_sum_to_one(rows, answer):
    assert are_probabilities(torch.tensor(rows)) is answer


def test_batches_are_filled_up_and_the_filling_is_dropped():
    seen = []

    def call(x):
        seen.append(x.tolist())
        return 10 * x

    x = torch.arange(5)[:, None]
    assert in_batches(call, x, 2).flatten().tolist() == [0, 10, 20, 30, 40]
    assert seen == [[[0], [1]], [[2], [3]], [[4], [4]]]


@pytest.mark.parametrize(
    ("shape", "layout", "batch", "size"),
    [
        ((None, 3, 32, 48), "NCHW", None, (32, 48)),
        ((1, 32, 48, 3), "NHWC", 1, (32, 48)),
        ((4, 3, 3, 3), "NCHW", 4, (3, 3)),
        ((None, None, None, None), "NCHW", None, None),
    ],
)
def test_the_order_of_axes_follows_from_the_shape(shape, layout, batch, size):
    intake = intake_of(shape, torch.float32)
    assert (intake.layout, intake.batch, intake.size) == (layout, batch, size)


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 1, 28, 28), "takes 1 channels"), ((1, 10), "tensor of 2 axes")]
)
def test_what_is_no_colour_picture_is_refused(shape, message):
    with pytest.raises(ModelError, match=message):
        intake_of(shape, torch.float32)


def test_names_come_from_lists_and_from_mappings_with_gaps():
    assert names_in_order(["a", "b"], 2) == ("a", "b")
    assert names_in_order({"1": "b", "0": "a"}, None) == ("a", "b")
    assert names_in_order({0: "a", 2: "c"}, 3) == ("a", "output 1", "c")


def test_names_for_other_outputs_are_refused():
    with pytest.raises(ModelError, match=r"3 outputs, but 2 class names \(a, b\)"):
        names_in_order(["a", "b"], 3)


def test_preprocessing_is_read_from_toml_and_json(tmp_path):
    toml, other = tmp_path / "p.toml", tmp_path / "p.json"
    toml.write_text("mean = 127.5\nstd = [127.5, 127.5, 127.5]\nscale = 1.0\nsize = 64\n")
    other.write_text('{"layout": "NHWC", "size": [32, 48], "interpolation": "nearest"}')
    first, second = read_preprocess(toml), read_preprocess(other)
    assert (first.mean, first.scale, first.size) == ((127.5,) * 3, 1.0, (64, 64))
    assert (second.layout, second.size, second.interpolation) == ("NHWC", (32, 48), "nearest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("means = 1.0", "means = 1.0"),
        ("mean = 0.0\nstd = 0.0", "must be above 0"),
        ("scale = 1.0", "mean and std belong together"),
        ("mean = ", "Cannot read"),
    ],
)
def test_a_preprocess_file_that_makes_no_sense_says_so(tmp_path, text, message):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        read_preprocess(path)
