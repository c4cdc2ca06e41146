"""Row 20: Grad-CAM, its guided form and its relatives, against worked numbers and against peers."""

from __future__ import annotations

import pytest
import timm
import torch
from explain.conftest import small
from torch import Tensor, nn
from torch.nn import functional as F

from beholder.core.errors import ArgumentError, ModelError
from beholder.core.model import VisionModel
from beholder.explain.attribution.cams import (
    EigenCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from beholder.explain.attribution.gradcam import (
    CAM,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    grad_cam,
)
from beholder.explain.base import EMPTY, frozen
from beholder.explain.targets import Neuron, Text, reader
from beholder.models.classifier_heads import KernelHead, LinearHead

ONE, OTHER = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]


@pytest.fixture(scope="module")
def worked() -> tuple[Tensor, Tensor]:
    """The maps of the specification's example and their gradients: y = 2 mean(A1) - mean(A2)."""
    maps = torch.tensor([[ONE, OTHER]], requires_grad=True)
    score = 2 * maps[:, 0].mean() - maps[:, 1].mean()
    return maps.detach(), torch.autograd.grad(score, maps)[0]


def test_the_worked_example(worked: tuple[Tensor, Tensor]):
    assert grad_cam(*worked).tolist() == [[[0.5, 0], [0, -0.25]]]


def test_the_worked_counterfactual_is_what_speaks_against(worked: tuple[Tensor, Tensor]):
    maps, gradients = worked
    assert GradCAM(counterfactual=True).rule(maps, gradients).relu().tolist() == [
        [[0, 0], [0, 0.25]]
    ]


def low_resolution(explainer: CAM, model: VisionModel, images: Tensor, target: int) -> Tensor:
    """The map before it is enlarged."""
    with frozen(model):
        read = reader(model, target, len(images))
        return explainer.prepared(model, read, images).attribute(model, images, read).maps


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer2.0.conv1", "layer1.0.act1"])
def test_equal_to_captum_on_any_layer(layer: str, images: Tensor):
    from captum.attr import LayerGradCam

    model = small("test_resnet")
    module = dict(model.backbone.named_modules())[layer]
    theirs = LayerGradCam(model, module).attribute(images, target=4, relu_attributions=True)
    ours = low_resolution(GradCAM(layer), model, images, 4)
    assert torch.allclose(ours, theirs.detach()[:, 0], atol=1e-6)


def test_on_resnet18_it_is_the_class_activation_map_over_the_cells(images: Tensor):
    model = small("resnet18")
    with torch.no_grad():
        features = model.backbone.forward_features(model.normalise(images))
        weights = model.backbone.fc.weight[2]
    cam = torch.einsum("c,bchw->bhw", weights, features) / features[0, 0].numel()
    ours = low_resolution(GradCAM(relu=False), model, images, 2)
    assert torch.allclose(ours, cam, atol=1e-6)


class Plain(nn.Module):
    """Like VGG: convolutions and ReLU, in place or not; or a block that uses one ReLU twice."""

    def __init__(self, inplace: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 6, 3, padding=1)
        self.third, self.head = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.relu = nn.ReLU(inplace)
        self.others = nn.ModuleList([self.relu if shared else nn.ReLU(inplace) for _ in "ab"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.others[0](self.second(x) + x)
        return self.head(self.others[1](self.third(x)).mean((2, 3)))


class Bare(VisionModel):
    """A `VisionModel` around a plain network, without preprocessing."""

    def __init__(self, network: nn.Module, classes: int = 4) -> None:
        backbone = timm.create_model("test_resnet", num_classes=classes)
        super().__init__(backbone, "bare", classes=[str(i) for i in range(classes)])
        self.backbone = network.eval()  # type: ignore[assignment]

    def logits(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    forward = logits


def plain(inplace: bool = False, shared: bool = False) -> Bare:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Bare(Plain(inplace, shared))


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.filterwarnings("ignore:Input Tensor")
@pytest.mark.parametrize("kind", ["plain", "resnet18"])
def test_guided_gradients_equal_captum(kind: str, images: Tensor):
    from captum.attr import GuidedBackprop as Theirs

    model = plain() if kind == "plain" else small("resnet18")
    theirs = Theirs(model).attribute(images.clone().requires_grad_(True), target=1)
    ours = GuidedBackprop().explain(model, images, 1)
    assert ours.pixel is not None
    exact = min(1e-6, 1e-4 * float(theirs.abs().max()))
    assert torch.allclose(ours.pixel, theirs, atol=exact)
    assert torch.allclose(ours.heatmap, theirs.abs().amax(1), atol=exact)


@pytest.mark.parametrize(("inplace", "shared"), [(True, False), (False, True), (True, True)])
def test_relus_in_place_or_used_twice_are_guided_like_others(
    inplace: bool, shared: bool, images: Tensor
):
    usual = GuidedBackprop().explain(plain(), images, 1)
    ours = GuidedBackprop().explain(plain(inplace, shared), images, 1)
    assert usual.pixel is not None
    assert ours.pixel is not None
    assert torch.equal(ours.pixel, usual.pixel)


def test_a_relu_called_as_a_function_is_guided(images: Tensor):
    class Functional(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            x = F.relu(self.second(x) + x, inplace=True)
            return self.head(self.third(x).relu_().mean((2, 3)))

    model = plain()
    other = Bare(Functional())
    other.backbone.load_state_dict(model.backbone.state_dict())
    ours, usual = (GuidedBackprop().explain(m, images, 1).heatmap for m in (other, model))
    assert torch.equal(ours, usual)


def test_guided_gradcam_is_the_product(images: Tensor):
    model = small("test_resnet")
    coarse = GradCAM().explain(model, images, 1).heatmap
    fine = GuidedBackprop().explain(model, images, 1).pixel
    found = GuidedGradCAM().explain(model, images, 1)
    assert found.pixel is not None
    assert fine is not None
    assert torch.allclose(found.pixel, fine * coarse[:, None])
    assert "alike for any weights" in found.meta["notes"][0]


def vit(**options: object) -> VisionModel:
    return small("vit_tiny_patch16_224", (96, 96), img_size=96, depth=2, **options)


def test_the_last_block_of_a_vit_is_refused_and_the_reason_is_said(images: Tensor):
    with pytest.raises(ArgumentError, match=r"blocks\.1 is 0 at every patch.*\n.*class token"):
        GradCAM("blocks.1").explain(vit(), images)


def test_the_first_norm_of_the_last_block_is_found_and_its_map_is_not_empty(images: Tensor):
    found = GradCAM(relu=False).explain(vit(), images)
    assert found.meta["layer"] == "blocks.1.norm1"
    assert found.meta["cells"] == (6, 6)
    assert found.heatmap.abs().flatten(1).amax(1).min() > 0


def test_a_batch_without_positive_evidence_is_said_to_be_empty_not_shown_as_noise():
    class Negative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            score = self.maps(x).mean((1, 2, 3))
            return torch.stack([-score, score, 0 * score], 1)

    model = Bare(Negative(), 3)
    image = torch.rand(1, 3, 8, 8)
    found = GradCAM("maps").explain(model, torch.cat([image, image]), torch.tensor([0, 1]))
    assert found.meta["empty"] == [0]
    assert found.meta["notes"] == [f"1 of 2 maps: {EMPTY}"]
    assert found.heatmap[0].max() == 0
    assert found.normalised()[0].max() == 0
    against = GradCAM("maps", counterfactual=True).explain(model, image, 0)
    assert against.heatmap.max() > 0


def test_the_heat_lies_in_the_quadrant_that_decides():
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Conv2d(3, 1, 8, 8, bias=False)
            nn.init.ones_(self.maps.weight)

        def forward(self, x: Tensor) -> Tensor:
            right = self.maps(x).relu()[:, 0].flatten(1)
            return torch.stack([right.sum(1), torch.zeros(len(x)), torch.ones(len(x))], 1)

    image = torch.zeros(1, 3, 64, 64)
    image[:, :, :32, 32:] = 1
    heat = GradCAM("maps").explain(Bare(Corner(), 3), image, 0).heatmap[0]
    assert heat[:32, 32:].sum() / heat.sum() > 0.8


@pytest.mark.parametrize("joint", [True, False], ids=["linear", "kernel"])
def test_a_head_on_the_descriptor_that_averages_mirror_images(joint: bool, images: Tensor):
    backbone = timm.create_model("test_resnet", num_classes=0)
    plain = VisionModel(backbone, "run", classes=["no", "yes"], input_size=(96, 96))
    width = plain.descriptor(images).shape[1]
    mean, scale = torch.zeros(width), torch.ones(width)
    random = torch.Generator().manual_seed(0)
    if joint:
        weight = torch.randn(1, width, generator=random)
        head = LinearHead(mean, scale, weight, torch.zeros(1), 2, joint=True)
    else:
        points, alpha = torch.randn(5, width, generator=random), torch.ones(5, 1)
        alpha[2:] = -1
        head = KernelHead(mean, scale, points, alpha, torch.zeros(1), torch.tensor(1 / width), 2)
    model = VisionModel(
        backbone, "run", classes=["no", "yes"], input_size=(96, 96), head=head, mirror=True
    )
    yes = GradCAM(relu=False).explain(model, images, 1)
    no = GradCAM(relu=False).explain(model, images, 0)
    assert yes.heatmap.abs().max() > 0
    assert torch.allclose(no.heatmap, -yes.heatmap, atol=1e-7)
    turned = GradCAM(relu=False).explain(model, images.flip(-1), 1)
    scale = yes.heatmap.abs().max()
    assert torch.allclose(turned.heatmap.flip(-1), yes.heatmap, atol=1e-4 * scale)
    assert torch.allclose(turned.score, yes.score, atol=1e-4)


def test_maps_of_mirror_images_are_turned_back_before_they_are_added(images: Tensor):
    base = small("test_resnet")

    class Mirrored(Bare):
        def logits(self, images: Tensor) -> Tensor:
            return (self.backbone(images) + self.backbone(images.flip(-1))) / 2

    model = Mirrored(base.backbone, 6)
    model.head, model.mirror = object(), True  # type: ignore[assignment]
    one, other = (
        low_resolution(GradCAM("layer4", relu=False), Bare(base.backbone, 6), x, 2)
        for x in (images, images.flip(-1))
    )
    both = low_resolution(GradCAM("layer4", relu=False), model, images, 2)
    assert torch.allclose(both, (one + other.flip(-1)) / 2, atol=1e-6)


def test_any_function_of_the_output_can_be_explained(images: Tensor):
    model = small("test_resnet")
    usual = GradCAM().explain(model, images, 3)
    found = GradCAM().explain(model, images, lambda logits: logits[3])
    several = GradCAM().explain(model, images, [lambda logits, i=i: logits[i] for i in (3, 0, 3)])
    assert torch.equal(found.heatmap, usual.heatmap)
    assert torch.equal(several.heatmap[2], usual.heatmap[2])
    assert found.target.tolist() == [-1, -1, -1]


def test_a_unit_is_explained_by_its_own_activation(images: Tensor):
    model = small("test_resnet")
    found = GradCAM("layer3").explain(model, images, Neuron("layer4", 5))
    seen = model.feature_maps(images)["4"][:, 5].mean((1, 2))
    assert torch.allclose(found.score, seen.detach(), atol=1e-6)
    assert found.heatmap.max() > 0
    cell = GradCAM("layer3").explain(model, images, Neuron("layer4", 5, xy=(2, 0)))
    assert torch.allclose(cell.score, model.feature_maps(images)["4"][:, 5, 0, 2].detach())


def test_likeness_to_a_text_is_explained_where_the_model_knows_texts(images: Tensor):
    model = small("test_resnet")
    with pytest.raises(ModelError, match="does not know texts"):
        GradCAM().explain(model, images, Text("red"))
    towards = model.features(images[:1]).detach()

    class Named(VisionModel):
        def encode_text(self, words: list[str]) -> Tensor:
            return towards.expand(len(words), -1)

    named = Named(model.backbone, "named", classes=model.classes, input_size=(96, 96))
    found = GradCAM().explain(named, images, Text("red"))
    assert float(found.score[0]) == pytest.approx(1, abs=1e-5)
    assert (found.score[1:] < 1).all()


def test_wrong_layers_and_targets_are_refused_with_what_there_is(images: Tensor):
    model = small("test_resnet")
    with pytest.raises(ArgumentError, match=r"(?s)no layer 'layr4'.*layer4"):
        GradCAM("layr4").explain(model, images)
    with pytest.raises(ArgumentError, match=r"(?s)no class 6.*0 to 5"):
        GradCAM().explain(model, images, 6)
    with pytest.raises(ArgumentError, match="2 targets for 3 images"):
        GradCAM().explain(model, images, torch.tensor([1, 2]))
    with pytest.raises(ArgumentError, match=r"(?s)no unit 999.*0 to"):
        GradCAM().explain(model, images, Neuron("layer3", 999))
    with pytest.raises(ArgumentError, match="has no places"):
        GradCAM("fc").explain(model, images)
    with pytest.raises(ArgumentError, match="not in \\[0, 1\\]"):
        GradCAM().explain(model, 2 * images)
    with pytest.raises(ArgumentError, match="cannot be explained"):
        GradCAM().explain(model, images[0])
    with pytest.raises(ModelError, match="no gradient"):
        GradCAM("layer4").explain(model, images, lambda logits: logits.detach()[0])


def test_a_map_of_one_cell_is_said_to_be_flat():
    image = torch.rand(1, 3, 32, 32)
    found = GradCAM("layer4").explain(small("test_resnet"), image)
    assert found.meta["cells"] == (1, 1)
    assert "single cell" in found.meta["notes"][-1]
    assert GradCAM().explain(small("test_resnet"), image).meta["cells"] != (1, 1)


def test_bytes_are_taken_for_what_they_show(images: Tensor):
    model = small("test_resnet")
    exact = (255 * images).round()
    usual = GradCAM().explain(model, exact / 255)
    assert torch.equal(GradCAM().explain(model, exact.to(torch.uint8)).heatmap, usual.heatmap)


PEERS = {
    GradCAM: "GradCAM",
    GradCAMPlusPlus: "GradCAMPlusPlus",
    XGradCAM: "XGradCAM",
    LayerCAM: "LayerCAM",
    HiResCAM: "HiResCAM",
    EigenCAM: "EigenCAM",
}


@pytest.mark.parametrize("method", PEERS, ids=PEERS.get)
def test_the_rule_is_that_of_pytorch_grad_cam(method: type[CAM]):
    peer = getattr(pytest.importorskip("pytorch_grad_cam"), PEERS[method])
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 8, 5, 7, generator=random)
    gradients = torch.randn(2, 8, 5, 7, generator=random)
    network = small("test_resnet")
    theirs = peer(model=network, target_layers=[network.backbone.layer4]).get_cam_image(
        None, None, None, maps.numpy(), gradients.numpy(), False
    )
    ours = method().rule(maps, gradients)
    if method is EigenCAM:  # its sign is open
        ours, theirs = ours.abs(), abs(theirs)
    assert torch.allclose(ours, torch.as_tensor(theirs), rtol=1e-4, atol=1e-5)


def test_the_principal_direction_points_to_where_the_maps_grow():
    maps = torch.rand(2, 1, 4, 4).repeat(1, 3, 1, 1)
    found = EigenCAM().rule(maps, maps)
    assert torch.allclose(
        found, 3**0.5 * (maps[:, 0] - maps[:, 0].mean((1, 2), keepdim=True)), atol=1e-5
    )
