"""Outputs of a given model find the classes of the data by name (specs/study.md, section 3)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beholder.core.errors import ArgumentError, ModelError
from beholder.models.classmatch import (
    apply,
    match_classes,
    normalised,
    numbered,
    read_class_map,
    readable,
)


def write_map(folder, *lines, head="data_class,model_class"):
    path = folder / "map.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_equal_names_match_whatever_their_order():
    match = match_classes(["cat", "dog"], ["dog", "cat"])
    assert match.columns == ((1,), (0,))
    assert (match.how, match.missing, match.extra) == ("exact", (), ())


def test_case_unicode_form_and_separators_do_not_matter():
    match = match_classes(["Golden_Retriever", "CAFE\u0301"], ["caf\u00e9", "golden  retriever"])
    assert match.columns == ((1,), (0,))
    assert match.how == "normalised"


def test_an_equal_name_wins_over_a_similar_one():
    match = match_classes(["cat", "Cat"], ["Cat", "cat"])
    assert match.columns == ((1,), (0,))


def test_imagenet_names_find_their_wordnet_ids():
    match = match_classes(["Goldfish", "tabby cat"], ["n02123045", "n01443537", "n01440764"])
    assert match.columns == ((1,), (0,))
    assert match.how == "wordnet"
    assert match.extra == ("n01440764",)


def test_wordnet_ids_of_the_data_find_names_of_the_model():
    match = match_classes(["n01443537", "n02123045"], ["tabby", "Carassius auratus"])
    assert match.columns == ((1,), (0,))


def test_the_usual_meaning_of_a_name_wins_over_a_rare_one():
    assert match_classes(["harp"], ["n03494278", "n03495258"]).columns == ((1,),)


def test_a_name_with_two_meanings_is_not_guessed():
    with pytest.raises(ModelError, match=r"'crane' could be any of n02012849 \(crane\)"):
        match_classes(["crane"], ["n02012849", "n03126707"])


def test_two_classes_that_look_like_one_output_are_not_guessed():
    with pytest.raises(ModelError, match=r"'Cat a' and 'cat-a' both look like 'cat_a'"):
        match_classes(["Cat a", "cat-a"], ["cat_a", "dog"])


def test_classes_of_one_side_only_are_named():
    match = match_classes(["cat", "horse"], ["dog", "cat", "cow"])
    assert match.columns == ((1,), ())
    assert match.missing == ("horse",)
    assert (match.extra, match.extra_columns) == (("dog", "cow"), (0, 2))
    assert match.names == ("cat", "horse", "dog", "cow")


def test_integers_from_zero_match_by_number_and_not_by_place():
    match = match_classes(["00", "01", "02"], ["2", "0", "1"])
    assert match.columns == ((1,), (2,), (0,))
    assert match.how == "position"


def test_eleven_padded_numbers_all_match():
    match = match_classes([f"{i:02}" for i in range(11)], numbered(11))
    assert match.columns == tuple((i,) for i in range(11))
    assert match.missing == ()


def test_integers_that_are_not_all_from_zero_do_not_match_by_number():
    with pytest.raises(ModelError, match="No class of the data is known"):
        match_classes(["01", "02"], ["1", "2"])


def test_outputs_without_names_match_data_that_is_numbered():
    assert match_classes(["0", "1", "2"], numbered(3)).how == "exact"


def test_by_position_ignores_names():
    match = match_classes(["cat", "dog"], ["dog", "cat"], by_position=True)
    assert match.columns == ((0,), (1,))
    assert match.how == "position"


def test_by_position_needs_as_many_outputs_as_classes():
    with pytest.raises(ModelError, match="the data has 2, the model 3"):
        match_classes(["a", "b"], numbered(3), by_position=True)


def test_nothing_in_common_is_an_error_that_shows_both_sides_and_the_ways_out():
    with pytest.raises(ModelError) as raised:
        match_classes(["w", "x", "y", "z"], ["a", "b"])
    message = str(raised.value)
    assert "the data has w, x, y and 1 more" in message
    assert "the model has a, b." in message
    for option in ("--class-map", "--by-position", "--classes"):
        assert option in message


def test_two_outputs_of_one_name_are_refused():
    with pytest.raises(ModelError, match="several outputs named 'crane'"):
        match_classes(["crane"], ["crane", "ox", "crane"])


def test_a_class_map_joins_outputs_and_leaves_the_other_names_alone(tmp_path):
    path = write_map(tmp_path, "cat,tabby", "cat,tiger cat")
    match = match_classes(["cat", "dog"], ["tiger cat", "dog", "tabby"], class_map=path)
    assert match.columns == ((0, 2), (1,))
    assert match.how == "map"


def test_a_class_map_may_come_from_a_spreadsheet(tmp_path):
    path = tmp_path / "map.csv"
    path.write_bytes("\ufeffmodel_class;data_class\r\nKatze; cat\r\n".encode())
    assert read_class_map(path) == [("cat", "Katze")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat,lion"], "The class map names lion, but the model has tabby, dog"),
        (["horse,dog"], "The class map names horse, but the data has cat, dog"),
        (["cat,dog", "dog,dog"], "gives 'dog' of the model to both 'cat' and 'dog'"),
    ],
)
def test_a_class_map_that_does_not_fit_says_where(tmp_path, lines, message):
    with pytest.raises(ModelError, match=message):
        match_classes(["cat", "dog"], ["tabby", "dog"], class_map=write_map(tmp_path, *lines))


def test_a_class_map_without_its_columns_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no columns data_class and model_class"):
        read_class_map(write_map(tmp_path, "cat,tabby", head="a,b"))


def test_a_missing_class_map_is_an_error_of_the_model(tmp_path):
    with pytest.raises(ModelError, match="Cannot read the class map"):
        read_class_map(tmp_path / "none.csv")


def test_map_and_position_exclude_each_other(tmp_path):
    with pytest.raises(ArgumentError, match="exclude each other"):
        match_classes(["a"], ["b"], class_map=write_map(tmp_path, "a,b"), by_position=True)


def test_logits_are_reordered_joined_and_keep_the_extra_outputs(tmp_path):
    path = write_map(tmp_path, "cat,tabby", "cat,tiger cat")
    match = match_classes(["cat", "dog"], ["dog", "tabby", "cow", "tiger cat"], class_map=path)
    logits = torch.tensor([[0.5, math.log(2.0), -1.0, math.log(3.0)]])
    joined = apply(logits, match)
    assert match.names == ("cat", "dog", "cow")
    assert torch.allclose(joined, torch.tensor([[math.log(5.0), 0.5, -1.0]]))


def test_a_missing_class_has_no_probability_and_the_rest_sums_to_one():
    match = match_classes(["horse", "cat"], ["cat", "cow"])
    probability = apply(torch.tensor([[1.0, 1.0]]), match).softmax(1)
    assert probability.tolist() == [[0.0, 0.5, 0.5]]


def test_joining_keeps_gradients_finite_even_beside_a_missing_class():
    match = match_classes(["horse", "cat"], ["cat", "cow"])
    logits = torch.tensor([[1.0, -1.0]], requires_grad=True)
    apply(logits, match).log_softmax(1)[0, 1].backward()
    share = 1 / (1 + math.exp(-2))
    assert torch.allclose(logits.grad, torch.tensor([[1 - share, share - 1]]))


@settings(deadline=None, derandomize=True)
@given(st.permutations(list("abcdef")), st.integers(0, 2**16))
def test_single_outputs_pass_through_unchanged_under_any_order(names, seed):
    match = match_classes(list("abcdef"), names)
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(apply(logits, match), logits[:, [names.index(c) for c in "abcdef"]])


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=12))
def test_normalising_a_name_twice_changes_nothing_more(name):
    assert normalised(normalised(name)) == normalised(name)


def test_wordnet_ids_are_shown_with_a_name():
    assert readable("n02123045") == "n02123045 (tabby)"
    assert readable("cat") == "cat"
