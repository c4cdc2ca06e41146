"""Models that the user brings: judged as they are, on the classes of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from study.conftest import Studied
from study.world import draw, folders
from torch import Tensor, nn

from beholder.core.errors import ModelError
from beholder.evaluate.benchmarks import MEASURED
from beholder.evaluate.report import Report
from beholder.study import study

QUICK = {"quiet": True, "without": ("cost", *MEASURED)}
NAMES = ("eight", "one", "seven")
DIGITS = (8, 1, 7)


class ByPatterns(nn.Module):
    """Compares the brightness on an 8 x 8 grid with the mean picture of each digit."""

    def __init__(self) -> None:
        super().__init__()
        means = [np.mean([np.asarray(draw(d, n)) for n in range(40, 70)], 0) for d in DIGITS]
        patterns = torch.tensor(np.stack(means)).permute(0, 3, 1, 2).float() / 255
        self.patterns = nn.Parameter(self.centred(patterns))

    def centred(self, images: Tensor) -> Tensor:
        grid = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8).flatten(1)
        return nn.functional.normalize(grid - grid.mean(1, keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        return 20 * self.centred(images) @ self.patterns.T


def as_callable(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to logits."""
    with torch.inference_mode():
        return ByPatterns()(images.float() / 255)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 16 digits."""
    place = tmp_path_factory.mktemp("digits") / "three"
    for name, digit in zip(NAMES, DIGITS, strict=True):
        (place / name).mkdir(parents=True)
        for number in range(16):
            draw(digit, number).save(place / name / f"{number}.png")
    return place


@pytest.fixture(autouse=True)
def _quick(fresh: pytest.MonkeyPatch) -> None:
    """No OpenVINO."""


def right(report: Report) -> float:
    return report.accuracy.values["accuracy"].estimate


def test_a_module_is_judged_on_every_image(data: Path, tmp_path: Path):
    report = study(data, ByPatterns(), out=tmp_path / "run", classes=NAMES, **QUICK)
    assert "failed" not in {section.status for section in report.sections}
    assert right(report) > 0.85
    assert report.accuracy.n == 48
    assert report.model_facts.origin == "given"
    assert report.model_facts.class_match == "exact"
    assert report.split.kind == "given"
    assert "normalised" in " ".join(report["method"].assumptions)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_callable_gives_the_answers_that_it_gives(data: Path, tmp_path: Path):
    report = study(data, as_callable, out=tmp_path / "run", classes=NAMES, **QUICK)
    expected = []
    for path in sorted(path.relative_to(data) for path in data.rglob("*.png")):
        name, file = path.parts
        image = draw(DIGITS[NAMES.index(name)], int(file[:-4])).resize((224, 224), 2)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
        expected.append(int(as_callable(pixels).argmax()))
    found = report.predictions["predicted"].to_list()
    assert np.mean(np.array(found) == expected) > 0.97


def test_a_callable_that_cannot_be_named_is_asked_again(data: Path, tmp_path: Path):
    asked = []

    def model(images: Tensor) -> Tensor:
        asked.append(len(images))
        return as_callable(images)

    for run in ("first", "second"):
        study(data, model, out=tmp_path / run, classes=NAMES, sections=("accuracy",), quiet=True)
    half = len(asked) // 2
    assert asked[:half] == asked[half:]


def test_probabilities_are_read_as_such_and_noted(data: Path, tmp_path: Path):
    def model(images: Tensor) -> Tensor:
        return as_callable(images).softmax(1)

    report = study(data, model, out=tmp_path / "run", classes=NAMES, **QUICK)
    assert right(report) > 0.85
    assert "The model gives probabilities" in " ".join(report["method"].assumptions)


def test_a_wrong_class_order_is_found_and_shown(data: Path, tmp_path: Path):
    turned = (*NAMES[1:], NAMES[0])
    wrong = study(data, ByPatterns(), out=tmp_path / "wrong", classes=turned, **QUICK)
    assert right(wrong) < 0.2
    assert "class order is probably wrong" in wrong.verdict.sentence
    assert wrong.severity == "act"


def test_other_classes_than_those_of_the_data_are_refused(data: Path, tmp_path: Path):
    with pytest.raises(ModelError) as error:
        study(data, ByPatterns(), out=tmp_path / "run", classes=("cat", "dog", "cow"), **QUICK)
    assert "eight" in str(error.value)
    assert "cat" in str(error.value)
    with pytest.raises(ModelError):
        study(data, ByPatterns(), out=tmp_path / "run2", **QUICK)


def test_a_wrong_number_of_names_is_refused(data: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="3 outputs"):
        study(data, ByPatterns(), out=tmp_path / "run", classes=("eight", "one"), **QUICK)


def test_a_class_that_the_model_lacks_is_told_and_not_judged(data: Path, tmp_path: Path):
    from PIL import Image

    place = tmp_path / "four"
    for name in NAMES:
        (place / name).mkdir(parents=True)
        for path in (data / name).iterdir():
            (place / name / path.name).write_bytes(path.read_bytes())
    (place / "cloud").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "cloud" / f"{number}.png")
    report = study(place, ByPatterns(), out=tmp_path / "run", classes=NAMES, **QUICK)
    assert "failed" not in {section.status for section in report.sections}
    assert report.accuracy.n == 48
    told = " ".join(report["method"].assumptions)
    assert "does not know cloud" in told
    assert "6 images are not judged" in told


def test_an_output_that_the_data_lacks_is_kept(data: Path, tmp_path: Path):
    two = _only(data, tmp_path, NAMES[:2])
    report = study(two, ByPatterns(), out=tmp_path / "run", classes=NAMES, **QUICK)
    assert "failed" not in {section.status for section in report.sections}
    assert report.accuracy.n == 32
    assert report.model_facts.classes == list(NAMES)
    assert "seven has only 0 images" not in report["data"].finding


def test_classes_of_timm_that_the_data_lacks_are_not_taken_for_classes_of_the_data(
    data: Path, tmp_path: Path
):
    place = tmp_path / "fish"
    for name, source in (("tench", "one"), ("goldfish", "seven")):
        (place / name).mkdir(parents=True)
        for path in (data / source).iterdir():
            (place / name / path.name).write_bytes(path.read_bytes())
    report = study(place, "untrained:test_resnet", judge=True, out=tmp_path / "run", **QUICK)
    assert "failed" not in {section.status for section in report.sections}
    assert report["data"].finding == "32 images in 2 classes; the rarest, goldfish, has 16."
    assert report.model_facts.class_match == "wordnet"


def test_one_class_of_two_cannot_show_a_wrong_class_order(data: Path, tmp_path: Path):
    one = _only(data, tmp_path, NAMES[:1])
    turned = (NAMES[1], NAMES[0], NAMES[2])
    report = study(
        one, ByPatterns(), out=tmp_path / "run", classes=turned, format="folders", **QUICK
    )
    assert "class order" not in report.verdict.sentence


def _only(data: Path, place: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (place / "some" / name).mkdir(parents=True)
        for path in (data / name).iterdir():
            (place / "some" / name / path.name).write_bytes(path.read_bytes())
    return place / "some"


def test_onnx_is_judged_with_the_names_that_it_holds(data: Path, tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        ByPatterns().eval(), (torch.zeros(1, 3, 32, 32),), str(file), dynamo=True, verbose=False
    )
    graph = onnx.load(file)
    graph.metadata_props.add(key="names", value=str(dict(enumerate(NAMES))))
    onnx.save(graph, file)
    report = study(data, file, out=tmp_path / "run", **QUICK)
    assert right(report) > 0.85
    assert report.model_facts.name.startswith("model")
    assert str(tmp_path) not in (tmp_path / "run" / "results.json").read_text()


def test_a_pickled_module_is_refused(data: Path, tmp_path: Path):
    torch.save(ByPatterns(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="pickled"):
        study(data, tmp_path / "model.pt", out=tmp_path / "run", **QUICK)


def test_a_model_that_is_not_there_is_refused(data: Path, tmp_path: Path):
    for name in ("nothing.onnx", "no_such_net", "local-dir:nowhere"):
        with pytest.raises(ModelError):
            study(data, name, out=tmp_path / name.replace(":", "-"), **QUICK)


def test_a_mistyped_model_does_not_take_the_directory(data: Path, tmp_path: Path):
    with pytest.raises(ModelError):
        study(data, "no_such_net", out=tmp_path / "run", **QUICK)
    report = study(data, "untrained:test_resnet", out=tmp_path / "run", sections=("data",), **QUICK)
    assert report.data.read == 48


def test_a_model_that_breaks_on_images_is_a_model_error(data: Path, tmp_path: Path):
    class Breaks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.reshape(len(images), 13, -1)

    with pytest.raises(ModelError):
        study(data, Breaks(), out=tmp_path / "run", classes=NAMES, **QUICK)


def test_a_model_of_not_a_number_is_no_good_model(data: Path, tmp_path: Path):
    def model(images: Tensor) -> Tensor:
        return torch.full((len(images), 3), float("nan"))

    with pytest.raises(ModelError, match="NaN"):
        study(data, model, out=tmp_path / "run", classes=NAMES, **QUICK)


def test_a_constant_model_is_no_better_than_the_majority(data: Path, tmp_path: Path):
    def model(images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0, 0]]).expand(len(images), 3)

    report = study(data, model, out=tmp_path / "run", classes=NAMES, **QUICK)
    assert "failed" not in {section.status for section in report.sections}
    assert right(report) == pytest.approx(1 / 3)
    assert report.severity == "act"


def test_a_run_is_not_judged_on_the_images_that_it_learned_from(small: Studied, tmp_path: Path):
    report = study(small.data, small.run, out=tmp_path / "run", **QUICK)
    assert "failed" not in {section.status for section in report.sections}
    rows = report.predictions
    assert rows.filter(pl.col("split") == "test")["path"].str.starts_with("test/").all()
    assert right(report) == right(small.report)
    assert "48 images that the model was trained on are not judged" in " ".join(
        report["method"].assumptions
    )


def test_a_run_of_cross_fitting_learned_from_all_and_judges_new_images(
    whole: Studied, tmp_path: Path
):
    same = study(whole.data, whole.run, out=tmp_path / "same", **QUICK)
    assert same.accuracy.status == "not_applicable"
    new = folders(tmp_path / "three", ["eight", "nine", "one"], 10, first=20)
    report = study(new, whole.run, out=tmp_path / "run", **QUICK)
    assert report.accuracy.n == 30


def test_a_run_answers_like_its_own_model(whole: Studied, tmp_path: Path):
    new = folders(tmp_path / "three", ["eight", "nine", "one"], 4, first=30)
    report = study(new, whole.run, out=tmp_path / "run", **QUICK)
    import beholder
    from beholder.data.sources import open_images

    model, images = beholder.load(whole.run), open_images(new)
    rows = report.predictions
    for row, id in enumerate(images.table["id"]):
        pixels = torch.from_numpy(model.prepare(images.read(row))).permute(2, 0, 1)[None]
        with torch.inference_mode():
            answer = model.logits(pixels).softmax(1)[0].tolist()
        found = rows.row(by_predicate=pl.col("id") == id, named=True)["probability"]
        assert found == pytest.approx(answer, abs=5e-3)


def test_a_given_model_is_asked_once_per_image(data: Path, tmp_path: Path):
    asked = []

    class Counts(ByPatterns):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(len(images))
            return super().forward(images)

    model = Counts()
    study(data, model, out=tmp_path / "first", classes=NAMES, **QUICK)
    first = sum(asked)
    study(data, model, out=tmp_path / "second", classes=NAMES, risk=0.2, **QUICK)
    assert sum(asked) - first < first  # the second asks about the sample that tells what it is


def test_judging_needs_no_label(data: Path, tmp_path: Path):
    (tmp_path / "heap").mkdir()
    for path in data.rglob("*.png"):
        (tmp_path / "heap" / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    report = study(tmp_path / "heap", ByPatterns(), out=tmp_path / "run", classes=NAMES, **QUICK)
    assert "failed" not in {section.status for section in report.sections}
    assert report.accuracy.status == "not_applicable"
    assert report.predictions["predicted"].null_count() == 0


def test_an_image_deleted_while_a_model_answers_is_not_judged(data: Path, tmp_path: Path):
    some = _only(data, tmp_path, NAMES)

    def deletes(stage: str, done: int, total: int, left: float | None) -> None:
        if stage == "answers":
            (some / "one" / "0.png").unlink(missing_ok=True)

    report = study(
        some, ByPatterns(), out=tmp_path / "run", classes=NAMES, on_progress=deletes, **QUICK
    )
    assert report.data.skipped == {"missing_file": 1}
    assert report.accuracy.n == 47
