"""Models that the user already has answer alike, or say clearly why not."""

import json
import math
import pickle
import socket
import sys
import time
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from beholder.core.errors import MissingExtraError, ModelError
from beholder.models.classmatch import apply, match_classes
from beholder.models.given import open_model, read_state
from beholder.models.given_model import PROBABILITIES
from beholder.models.intake import Preprocess

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

WEIGHT = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
BIAS = np.array([0, 0.5, -0.5], np.float32)
PLAIN = Preprocess(mean=(0, 0, 0), std=(1, 1, 1))


def write_onnx(path, shape=("batch", 3, 8, 8), *, softmax=False, metadata=None, type="FLOAT"):
    """Logits = mean colour x (1, 2, 3) + (0, .5, -.5); shape decides the order of the axes."""
    h = onnx.helper
    nodes, x = [], "pixels"
    if type == "UINT8":
        nodes.append(h.make_node("Cast", [x], ["real"], to=onnx.TensorProto.FLOAT))
        x = "real"
    if shape[-1] == 3:
        nodes.append(h.make_node("Transpose", [x], ["chw"], perm=[0, 3, 1, 2]))
        x = "chw"
    nodes += [
        h.make_node("GlobalAveragePool", [x], ["pooled"]),
        h.make_node("Flatten", ["pooled"], ["flat"]),
        h.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
    ]
    if softmax:
        nodes.append(h.make_node("Softmax", ["logits"], ["p"], axis=1))
    graph = h.make_graph(
        nodes,
        "tiny",
        [h.make_tensor_value_info("pixels", getattr(onnx.TensorProto, type), shape)],
        [h.make_tensor_value_info("p" if softmax else "logits", 1, (shape[0], 3))],
        [
            onnx.numpy_helper.from_array(WEIGHT, "weight"),
            onnx.numpy_helper.from_array(BIAS, "bias"),
        ],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    h.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path


def colours(*pixels, side=8):
    """uint8 [B, 3, side, side], each image of one colour."""
    return torch.tensor(pixels, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, side, side)


IMAGES = colours((255, 0, 0), (0, 255, 0), (0, 0, 255), (51, 102, 204), (0, 0, 0))
LOGITS = torch.tensor(
    [[1, 0.5, -0.5], [0, 2.5, -0.5], [0, 0.5, 2.5], [0.2, 1.3, 1.9], [0, 0.5, -0.5]]
)


class Tiny(nn.Module):
    def __init__(self, outputs=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3).eval()


# ONNX


@pytest.mark.parametrize("batch", ["batch", 1, 2, 8])
@pytest.mark.parametrize("axes", ["NCHW", "NHWC"])
def test_onnx_answers_for_any_batch_and_order_of_axes(tmp_path, batch, axes):
    shape = (batch, 3, 8, 8) if axes == "NCHW" else (batch, 8, 8, 3)
    path = write_onnx(tmp_path / "m.onnx", shape)
    model = open_model(path, preprocess=PLAIN, classes=["a", "b", "c"])
    assert (model.input_size, model.intake.layout) == ((8, 8), axes)
    assert torch.allclose(model.logits(IMAGES), LOGITS, atol=1e-6)
    assert torch.allclose(model.logits(IMAGES.float() / 255), LOGITS, atol=1e-6)
    assert model.features(IMAGES) is None
    assert (model.differentiable, model.origin, model.parameters_count) == (False, "given", 12)
    assert model.assumptions == []


def test_onnx_without_a_word_on_preprocessing_gets_imagenets_and_says_so(tmp_path):
    model = open_model(str(write_onnx(tmp_path / "m.onnx")))
    red = (np.array([1, 0, 0]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert np.allclose(model.logits(IMAGES[:1]).numpy()[0], red @ WEIGHT.T + BIAS, atol=1e-5)
    assert len(model.assumptions) == 1
    assert "mean and deviation of ImageNet are assumed" in model.assumptions[0]
    assert model.classes is None


def test_scale_comes_before_mean_and_deviation(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("mean = 127.5\nstd = 127.5\nscale = 1.0\n")
    model = open_model(write_onnx(tmp_path / "m.onnx"), preprocess=path)
    expected = torch.tensor([[1, -1.5, -3.5]])
    assert torch.allclose(model.logits(IMAGES[:1]), expected, atol=1e-5)
    assert model.describe()["scale"] == 1.0


def test_names_and_preprocessing_of_an_ultralytics_export_are_read(tmp_path):
    metadata = {
        "names": "{0: 'good', 1: \"crack\", 2: 'dark, old'}",
        "author": "Ultralytics",
        "imgsz": "[16, 24]",
    }
    path = write_onnx(tmp_path / "m.onnx", ("b", 3, "h", "w"), softmax=True, metadata=metadata)
    model = open_model(path)
    assert model.classes == ("good", "crack", "dark, old")
    assert (model.input_size, model.mean, model.std) == ((16, 24), (0, 0, 0), (1, 1, 1))
    assert model.assumptions == []


def test_own_metadata_on_preprocessing_is_used(tmp_path):
    metadata = {"mean": "[0.5, 0.5, 0.5]", "std": "0.25", "interpolation": "lanczos"}
    model = open_model(write_onnx(tmp_path / "m.onnx", metadata=metadata))
    assert (model.mean, model.std, model.interpolation) == ((0.5,) * 3, (0.25,) * 3, "lanczos")
    assert model.assumptions == []


def test_names_that_cannot_be_read_are_an_error_unless_the_user_names_them(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", metadata={"names": "{0: 'a"})
    with pytest.raises(ModelError, match="'names' of the model cannot be read"):
        open_model(path)
    assert open_model(path, classes=["a", "b", "c"]).classes == ("a", "b", "c")


def test_a_size_that_nobody_names_is_assumed_and_the_users_is_taken(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", ("b", 3, "h", "w"))
    model = open_model(path, preprocess=PLAIN)
    assert model.input_size == (224, 224)
    assert "224 x 224 is assumed" in model.assumptions[0]
    assert open_model(path, preprocess=PLAIN, input_size=(8, 8)).logits(IMAGES).shape == (5, 3)


def test_another_size_than_the_graphs_is_refused(tmp_path):
    with pytest.raises(ModelError, match="takes 8 x 8 pixels only, not 16 x 16"):
        open_model(write_onnx(tmp_path / "m.onnx"), input_size=(16, 16))


def test_probabilities_become_logits_and_are_noted_once(tmp_path):
    model = open_model(write_onnx(tmp_path / "m.onnx", softmax=True), preprocess=PLAIN)
    assert torch.allclose(model.logits(IMAGES), LOGITS.log_softmax(1), atol=1e-5)
    model.logits(IMAGES)
    assert model.assumptions == [PROBABILITIES]


def test_a_graph_of_whole_numbers_gets_pixels_as_they_are(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", (1, 8, 8, 3), type="UINT8")
    model = open_model(path)
    expected = torch.tensor([[51, 204.5, 611.5]])
    assert torch.allclose(model.logits(IMAGES[3:4]), expected)
    assert torch.allclose(model.logits(IMAGES[3:4] / 255), expected)
    with pytest.raises(ModelError, match="mean and std do not apply"):
        open_model(path, preprocess=PLAIN)


def test_the_hash_is_of_the_files_bytes_wherever_they_lie(tmp_path):
    (tmp_path / "sub").mkdir()
    one = open_model(write_onnx(tmp_path / "m.onnx"))
    same = open_model(write_onnx(tmp_path / "sub" / "n.onnx"))
    other = open_model(write_onnx(tmp_path / "o.onnx", softmax=True))
    assert one.weights_hash == same.weights_hash != other.weights_hash


def test_weights_beside_the_graph_count_for_the_hash(tmp_path):
    path = write_onnx(tmp_path / "m.onnx")
    onnx.save(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    before = open_model(path, preprocess=PLAIN)
    assert torch.allclose(before.logits(IMAGES), LOGITS, atol=1e-6)
    data = bytearray((tmp_path / "m.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "m.bin").write_bytes(data)
    assert open_model(path, preprocess=PLAIN).weights_hash != before.weights_hash


@pytest.mark.parametrize("content", [b"", b"hello, this is text", "cut"])
def test_what_is_no_onnx_is_refused(tmp_path, content):
    path = write_onnx(tmp_path / "m.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(ModelError, match=r"m\.onnx cannot be opened as an ONNX model"):
        open_model(path)


def test_onnx_without_its_runtime_names_the_extra(tmp_path, monkeypatch):
    path = write_onnx(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"beholder\[export\]"):
        open_model(path)


# torch.export


def save_program(path, module, batch=2, free=True, side=8):
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    program = torch.export.export(
        module.eval(), (torch.zeros(batch, 3, side, side),), dynamic_shapes=shapes
    )
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("free", [True, False])
def test_an_exported_program_answers_as_its_module(tmp_path, free):
    tiny = Tiny()
    path = save_program(tmp_path / "m.pt2", tiny, free=free)
    model = open_model(path, classes=["a", "b", "c"], preprocess=PLAIN)
    with torch.no_grad():
        expected = tiny(IMAGES.float() / 255)
    assert torch.allclose(model.logits(IMAGES), expected, atol=1e-6)
    assert model.intake.batch == (None if free else 2)
    assert (model.input_size, model.classes) == ((8, 8), ("a", "b", "c"))
    assert model.parameters_count == sum(p.numel() for p in tiny.parameters())


def test_an_exported_program_has_gradients_with_respect_to_images(tmp_path):
    model = open_model(save_program(tmp_path / "m.pt2", Tiny()), preprocess=PLAIN).eval()
    images = (IMAGES.float() / 255).requires_grad_()
    model.logits(images).sum().backward()
    assert model.differentiable
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("content", [b"", b"hello, this is text", "cut"])
def test_what_is_no_exported_program_is_refused(tmp_path, content):
    path = save_program(tmp_path / "m.pt2", Tiny())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(ModelError, match=r"m\.pt2 is no torch\.export program"):
        open_model(path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_exported_program_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    path = save_program(tmp_path / "m.pt2", Tiny())
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.pt")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for name in whole.namelist():
            trapped = name.endswith("sample_inputs/model.pt")
            content = (tmp_path / "trap.pt").read_bytes() if trapped else whole.read(name)
            evil.writestr(name, content)
    with pytest.raises(ModelError, match="could run any code"):
        open_model(tmp_path / "evil.pt2")
    assert not (tmp_path / "sprung").exists()


# timm, directories, weights


def save_directory(path, model, **config):
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    own = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": model.pretrained_cfg}
    (path / "config.json").write_text(json.dumps({**own, **config}))
    return f"local-dir:{path}"


def test_a_local_directory_brings_names_preprocessing_and_features(tmp_path, resnet):
    spec = save_directory(tmp_path / "ours", resnet, label_names=["a", "b", "c"])
    model = open_model(spec, input_size=(32, 32))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor(model.mean), torch.tensor(model.std)
    x = (images / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        logits, features = model.answer(images)
        assert torch.allclose(logits, resnet(x), atol=1e-5)
        pooled = resnet.forward_head(resnet.forward_features(x), pre_logits=True)
    assert torch.allclose(features, pooled, atol=1e-5)
    assert (model.name, model.classes) == ("ours", ("a", "b", "c"))
    assert model.mean == tuple(resnet.pretrained_cfg["mean"])
    assert model.interpolation == resnet.pretrained_cfg["interpolation"]
    assert next(iter(model.feature_maps(images))) == "0"
    assert (model.differentiable, model.assumptions) == (True, [])


def test_a_local_directory_without_names_has_none(tmp_path, resnet):
    assert open_model(save_directory(tmp_path / "ours", resnet)).classes is None


def test_the_users_names_win_and_must_be_as_many_as_outputs(tmp_path, resnet):
    spec = save_directory(tmp_path / "ours", resnet, label_names=["a", "b", "c"])
    assert open_model(spec, classes=["x", "y", "z"]).classes == ("x", "y", "z")
    with pytest.raises(ModelError, match="3 outputs, but 2 class names"):
        open_model(spec, classes=["x", "y"])


def test_a_broken_local_directory_says_what_is_missing(tmp_path, resnet):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_model(f"local-dir:{tmp_path}")
    spec = save_directory(tmp_path / "ours", resnet)
    (tmp_path / "ours" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be opened as a folder in timm's layout"):
        open_model(spec)
    (tmp_path / "ours" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="No suitable checkpoints"):
        open_model(spec)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped"])
def test_weights_open_with_their_architecture_named(tmp_path, resnet, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = resnet.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if kind == "pt" else {"epoch": 3, "state_dict": state}, path)
    model = open_model(f"test_resnet:{path}", input_size=(32, 32), classes=["a", "b", "c"])
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model.logits(images), resnet(model.normalise(images)), atol=1e-6)
    assert model.classes == ("a", "b", "c")
    assert "test_resnet's mean and deviation are assumed" in model.assumptions[0]


def test_weights_of_another_architecture_are_refused(tmp_path, resnet):
    path = tmp_path / "w.safetensors"
    save_file(resnet.state_dict(), path)
    with pytest.raises(ModelError, match="cannot be opened as the weights of resnet18"):
        open_model(f"resnet18:{path}")
    with pytest.raises(ModelError, match=r"has no classifier: head\.weight of test_vit"):
        open_model(f"test_vit:{path}")
    with pytest.raises(ModelError, match="timm knows no architecture 'resnet_none'"):
        open_model(f"resnet_none:{path}")


def test_weights_without_an_architecture_say_how_to_name_it(tmp_path, resnet):
    path = tmp_path / "w.safetensors"
    save_file(resnet.state_dict(), path)
    with pytest.raises(ModelError, match=r"--model ARCHITECTURE:.*w\.safetensors"):
        open_model(path)


def test_a_pickled_module_is_refused_and_nothing_in_it_runs(tmp_path):
    torch.save(Tiny(), tmp_path / "m.pt")
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "t.pth")
    (tmp_path / "p.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for spec in ("m.pt", "t.pth", "p.bin"):
        with pytest.raises(ModelError, match="pickled Python object") as raised:
            open_model(tmp_path / spec)
        assert ".pt2" in raised.value.hint
        with pytest.raises(ModelError, match="pickled Python object"):
            open_model(f"test_resnet:{tmp_path / spec}")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"hello, this is text", "cut"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_broken_file_of_weights_is_refused(tmp_path, resnet, content, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(resnet.state_dict(), path)
    else:
        save_file(resnet.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(ModelError):
        read_state(path)


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt", ".safetensors"])
def test_a_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(ModelError, match=f"none{suffix} does not exist"):
        open_model(tmp_path / f"none{suffix}")


def test_a_timm_name_is_an_encoder_unless_it_is_to_be_judged():
    with pytest.raises(ModelError, match="add --judge"):
        open_model("tf_efficientnet_lite0", judge=False)


def test_an_unknown_name_is_refused():
    with pytest.raises(ModelError, match="timm knows no model 'no_such_net'"):
        open_model("no_such_net")


def test_a_path_without_a_known_ending_says_what_may_be_meant(tmp_path):
    with pytest.raises(ModelError, match=f"local-dir:{tmp_path}"):
        open_model(tmp_path)


def test_the_embedded_encoders_own_classifier_knows_a_cat_on_a_real_photograph():
    data = pytest.importorskip("skimage.data")
    model = open_model("tf_efficientnet_lite0")
    answer = model.predict([data.chelsea()])
    match = match_classes(["tabby", "espresso"], model.classes)
    logits = apply(torch.from_numpy(answer.probability).log(), match)
    cats = {"n02123045", "n02123159", "n02124075", "n02123394", "n02123597"}
    assert answer.labels[0] in cats
    assert logits[0, 0] > logits[0, 1] + 2
    assert match.names[logits.argmax(1)[0]] in {"tabby", *cats}
    assert (len(model.classes), model.assumptions) == (1000, [])


def test_a_hub_that_does_not_answer_is_given_up_within_five_seconds(monkeypatch):
    def silence(*_, **__):
        time.sleep(20)

    monkeypatch.setattr(socket, "create_connection", silence)
    start = time.monotonic()
    with pytest.raises(ModelError, match="hf-hub:nobody/nothing could not be had"):
        open_model("hf-hub:nobody/nothing")
    assert time.monotonic() - start < 5


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", forbidden)
    with pytest.raises(ModelError, match="could not be had"):
        open_model("hf-hub:nobody/nothing")


# Python


def test_a_module_gets_normalised_floats_and_gives_the_input_of_its_last_layer():
    tiny = Tiny()
    model = open_model(tiny, classes=["a", "b", "c"], input_size=(8, 8), preprocess=PLAIN)
    images = (IMAGES.float() / 255).requires_grad_()
    logits, features = model.answer(images)
    assert torch.allclose(logits, tiny(images))
    assert torch.allclose(tiny.head(features), logits)
    logits.sum().backward()
    assert images.grad.abs().sum() > 0
    assert (model.name, model.differentiable, model.assumptions) == ("Tiny", True, [])


def test_a_module_of_unknown_size_and_preprocessing_says_what_is_assumed():
    model = open_model(Tiny())
    assert model.input_size == (224, 224)
    assert len(model.assumptions) == 2


def test_a_timm_module_brings_its_own_preprocessing(resnet):
    model = open_model(resnet, classes=["a", "b", "c"])
    assert model.mean == tuple(resnet.pretrained_cfg["mean"])
    assert (model.kind, model.name, model.assumptions) == ("timm", "test_resnet", [])


def test_a_timm_module_without_classifier_is_refused():
    with pytest.raises(ModelError, match="has no classifier"):
        open_model(timm.create_model("test_resnet", num_classes=0))


def test_a_callable_gets_uint8_and_may_give_numpy_probabilities():
    seen = []

    def brightness(images):
        seen.append(images)
        p = images.float().mean((1, 2, 3)).numpy() / 255
        return np.stack([1 - p, p], 1)

    model = open_model(brightness, classes=["dark", "bright"], input_size=(8, 8))
    logits = model.logits(colours((0, 0, 0), (51, 51, 51)).float() / 255)
    assert (seen[0].dtype, seen[0].shape) == (torch.uint8, (2, 3, 8, 8))
    expected = torch.tensor([[0, math.log(1e-7)], [math.log(0.8), math.log(0.2)]])
    assert torch.allclose(logits, expected, atol=1e-5)
    assert model.assumptions == [PROBABILITIES]
    assert (model.name, model.differentiable, model.weights_hash) == ("brightness", False, None)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: torch.zeros(len(x), 1), r"gives \[5, 1\]"),
        (lambda x: torch.zeros(len(x), 3, 4, 4), r"gives \[5, 3, 4, 4\]"),
        (lambda x: "cat", "gives a str, not a tensor"),
        (lambda x: torch.zeros(len(x), 4), "4 outputs, but 3 class names"),
    ],
)
def test_outputs_that_are_not_one_number_per_class_are_refused(output, message):
    model = open_model(output, classes=["a", "b", "c"], input_size=(8, 8))
    with pytest.raises(ModelError, match=message):
        model.logits(IMAGES)


def test_images_of_another_size_are_refused():
    model = open_model(Tiny(), input_size=(16, 16))
    with pytest.raises(ModelError, match=r"takes \[B, 3, 16, 16\], not \[5, 3, 8, 8\]"):
        model.logits(IMAGES)


def test_an_opened_model_is_not_opened_twice():
    model = open_model(Tiny())
    assert open_model(model) is model


def test_opening_leaves_the_random_generator_alone(tmp_path, resnet):
    path = tmp_path / "w.safetensors"
    save_file(resnet.state_dict(), path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    open_model(f"test_resnet:{path}")
    assert torch.equal(torch.rand(3), expected)


def test_a_prediction_resizes_pictures_and_names_the_answer():
    model = open_model(
        lambda x: x.float().mean((2, 3)), classes=["red", "green", "blue"], input_size=(8, 8)
    )
    picture = np.zeros((30, 20, 3), np.uint8)
    picture[:, :, 1] = 255
    assert model.predict([picture]).labels == ["green"]
