"""Backbones and what they cost: counted, not remembered."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from study.world import python
from torch.nn.attention import SDPBackend, sdpa_kernel

from beholder.core.errors import ArgumentError
from beholder.metrics.cost import macs
from beholder.models import catalogue
from beholder.models.catalogue import backbones, count, matches, parameter_filter


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_what_is_counted_without_memory_is_what_a_real_network_has(name: str):
    model = timm.create_model(name).eval()
    counted = count(name)
    assert counted["parameters"] == sum(p.numel() for p in model.parameters())
    size = (counted["height"], counted["width"])
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count its fused attention on a CPU
        assert counted["macs"] == macs(model, torch.zeros(1, 3, *size))


def test_published_costs_are_found():
    """He et al. 2016: 25.6 M parameters, 4.1 G multiply-adds at 224 px."""
    resnet50 = next(one for one in backbones("resnet50") if one.name == "resnet50")
    assert resnet50.parameters == 25_557_032
    assert resnet50.macs == pytest.approx(4.1e9, rel=0.01)
    assert resnet50.input_size == (224, 224)
    assert resnet50.pretrained


@pytest.mark.parametrize("name", ["test_efficientnet", "test_mambaout"])
def test_the_table_is_what_counting_gives(name: str):
    assert catalogue._table()[name] == count(name)


def test_what_the_table_lacks_is_counted_once(monkeypatch):
    monkeypatch.setattr(catalogue, "_table", dict)
    first = backbones("test_resnet")
    monkeypatch.setattr(catalogue, "count", lambda name: pytest.fail("counted again"))
    assert backbones("test_resnet") == first


def test_a_network_that_cannot_be_built_is_listed_without_figures(monkeypatch):
    def fails(name: str):
        raise RuntimeError(name)

    monkeypatch.setattr(catalogue, "_table", dict)
    monkeypatch.setattr(catalogue, "count", fails)
    found = backbones("test_resnet")
    assert [(one.name, one.parameters) for one in found] == [("test_resnet", None)]
    assert backbones("test_resnet", "<30M") == []


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("<30M", 29_999_999, 30_000_000),
        ("<=30M", 30_000_000, 30_000_001),
        (">5.5k", 5_501, 5_500),
        (">= 1G", 1_000_000_000, 999_999_999),
        (">5M,<30M", 6_000_000, 31_000_000),
    ],
)
def test_parameters_are_compared(text: str, inside: int, outside: int):
    fits = parameter_filter(text)
    assert fits(inside)
    assert not fits(outside)


@pytest.mark.parametrize("text", ["30M", "<thirty", "<30T", "<"])
def test_what_is_no_comparison_is_refused(text: str):
    with pytest.raises(ArgumentError, match="is no comparison"):
        parameter_filter(text)


def test_a_part_of_a_name_and_a_pattern_both_match():
    assert matches("resnet50", "net5")
    assert matches("resnet50", "resnet*")
    assert not matches("seresnet50", "resnet*")


def test_every_network_of_timm_is_listed():
    listed = {one.name for one in backbones("test_*")}
    assert listed >= set(timm.list_models("test_*"))


def test_the_command_filters_and_answers_json():
    said = python(
        "from beholder.cli import app\n"
        "app(['backbones', '--search', 'resnet1*', '--params', '<20M', '--json'],"
        " standalone_mode=False)"
    )
    found = json.loads(said)
    assert "resnet18" in [one["name"] for one in found]
    assert all(one["parameters"] < 20e6 for one in found)
