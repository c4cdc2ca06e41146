"""The layer that a map is taken from is found without naming it, in every family of timm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explain.conftest import small

from beholder.core.errors import ArgumentError, ModelError
from beholder.explain.attribution.gradcam import GradCAM
from beholder.explain.layers import as_maps, module_named

FLAT = {"img_size": 64}
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 1, 2)}
FAMILIES: dict[str, tuple[int, str, dict[str, Any]]] = {
    # name: side, layer that is found, settings that make it small
    "test_resnet": (96, "layer4", {}),
    "test_efficientnet": (96, "bn2", {}),
    "test_convnext": (96, "norm_pre", {}),
    "test_mambaout": (96, "stages", {}),
    "test_nfnet": (96, "final_act", {}),
    "test_byobnet": (96, "final_conv", {}),
    "test_coatnet": (160, "norm", {}),
    "test_maxvit": (160, "norm", {}),
    "test_vit": (160, "blocks.5.norm1", {}),  # class token
    "test_vit2": (160, "norm", {}),  # mean of the patches
    "test_vit_relpos": (160, "norm", {}),
    "mobilenetv3_small_050": (96, "blocks", {}),
    "mobilenetv4_conv_small_035": (96, "blocks", {}),
    "regnetx_002": (96, "final_conv", {}),
    "tf_efficientnet_lite0": (96, "bn2", {}),
    "ghostnet_050": (64, "blocks", {}),
    "hardcorenas_a": (64, "blocks", {}),
    "densenet121": (64, "features", {}),
    "swin_tiny_patch4_window7_224": (64, "layers.3.blocks.1.norm2", SWIN | {"num_heads": (1,) * 4}),
    "swinv2_tiny_window8_256": (64, "norm", SWIN | {"num_heads": (1,) * 4}),
    "deit_tiny_distilled_patch16_224": (64, "blocks.1.norm1", FLAT | {"depth": 2}),
    "vit_base_patch16_siglip_224": (
        *(64, "norm"),
        FLAT | {"embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "beit_base_patch16_224": (64, "norm", FLAT | {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "eva02_tiny_patch14_224": (56, "norm", {"img_size": 56, "depth": 2}),
    "cait_xxs24_224": (64, "blocks_token_only.1.norm1", FLAT | {"depth": 2}),
    "xcit_nano_12_p16_224": (64, "cls_attn_blocks.1.norm1", FLAT | {"depth": 2}),
    "convit_tiny": (64, "blocks.2.norm1", FLAT | {"depth": 3}),
    "gmlp_ti16_224": (64, "norm", FLAT),
    "coat_lite_tiny": (64, "serial_blocks4.1.norm1", FLAT),
    "coat_tiny": (64, "parallel_blocks.5.norm14", FLAT),
    "pit_ti_224": (64, "transformers.2.blocks.3.norm1", FLAT),
    "pvt_v2_b0": (64, "stages", {}),
    "mobilevit_xxs": (64, "final_conv", {}),
    "edgenext_xx_small": (96, "norm_pre", {}),
    "efficientvit_b0": (64, "stages", {}),
    "samvit_base_patch16": (
        *(64, "neck"),
        FLAT
        | {"embed_dim": 32, "depth": 2, "num_heads": 2, "neck_chans": 16}
        | {"global_attn_indexes": (1,)},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_map_is_found_has_cells_and_changes_with_the_target(name: str):
    side, layer, options = FAMILIES[name]
    model = small(name, (side, side), **options)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    a, b = (GradCAM(relu=False).explain(model, images, target) for target in (1, 2))
    assert a.meta["layer"] == layer
    assert a.meta["cells"][0] * a.meta["cells"][1] > 1
    assert a.heatmap.shape == (2, side, side)
    assert torch.isfinite(a.heatmap).all()
    largest = a.heatmap.abs().flatten(1).amax(1)
    assert ((a.heatmap - b.heatmap).abs().flatten(1).amax(1) > 1e-3 * largest).all()


def test_a_model_whose_score_is_constant_is_said_to_have_no_map():
    model = small("resmlp_12_224", (64, 64), img_size=64)
    with pytest.raises(ModelError, match=r"(?s)No layer of resmlp_12_224.*--layer"):
        GradCAM().explain(model, torch.rand(1, 3, 64, 64), lambda logits: 0 * logits[0])


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [
        ((1, 8, 3, 4), (96, 128), (1, 8, 3, 4)),
        ((1, 3, 4, 8), (96, 128), (1, 8, 3, 4)),
        ((1, 13, 5), (96, 128), (1, 5, 3, 4)),  # one token before the patches
        ((1, 17, 5), (64, 64), (1, 5, 4, 4)),
        ((1, 18, 5), (64, 64), (1, 5, 4, 4)),
    ],
)
def test_outputs_become_maps(shape: tuple, size: tuple, wanted: tuple):
    backbone = small("test_resnet").backbone
    assert as_maps(torch.rand(shape), size, backbone).shape == wanted


def test_patches_are_laid_out_row_by_row_behind_the_class_token():
    tokens = torch.arange(13.0)[None, :, None]
    maps = as_maps(tokens, (96, 128), small("test_resnet").backbone)
    assert maps[0, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 50, 27), (1, 23, 5)])
def test_what_has_no_places_is_no_map(shape: tuple[int, ...]):
    with pytest.raises(ArgumentError):
        as_maps(torch.rand(shape), (32, 64), small("test_resnet").backbone)


def test_an_unknown_layer_is_answered_with_the_nearest_five():
    with pytest.raises(ArgumentError, match="layer") as told:
        module_named(small("test_resnet").backbone, "layer9")
    assert told.value.hint.count(",") == 4
