"""The explanations section, the test of its maps, and how they reach the page (study.md, 4.8)."""

from __future__ import annotations

import dataclasses
import io
import re

import numpy as np
import planted
import polars as pl
import pytest
import torch
from PIL import Image
from report import fake
from scipy.ndimage import gaussian_filter
from study.world import SMALL, alone, folders

from beholder.core.options import Options
from beholder.core.sections import Picture, Section, Value
from beholder.evaluate.benchmarks import explaining, explanations, mistakes
from beholder.evaluate.benchmarks.base import SECTIONS
from beholder.evaluate.benchmarks.explaining import DESIGNS, ROLES, planned, wished
from beholder.evaluate.benchmarks.explanations import finding, summarise
from beholder.evaluate.heat_maps import (
    CELLS,
    GRID,
    ByGradient,
    ByOcclusion,
    Design,
    areas,
    blurring,
    border_ratio,
    cells,
    evidence_for,
    laid_over,
    moved,
)
from beholder.evaluate.report import anonymous, html, pictures
from beholder.evaluate.report.results import Verdict
from beholder.evaluate.subject import Allowance, Answer, Deployed, DeployedRun, TooLittleTimeError
from beholder.models.open import open_vision
from beholder.study import study

OPTIONS = Options.parse(data="planted")
SIDE = 56


class Reads(Deployed):
    """A black box of two classes: probability of the second = `read` of the image."""

    differentiable = False
    classes, size, crop, layout = ("no", "yes"), (SIDE, SIDE), "squash", {}

    def __init__(self, read) -> None:
        self.read = read

    def prepare(self, image):
        return image

    def ask(self, pixels, rows, progress=lambda done: None) -> Answer:
        p = np.clip([self.read(image) for image in pixels], 1e-9, 1 - 1e-9)
        return Answer(np.log(np.stack([1 - p, p], axis=1)), None)

    def modules(self, rows):
        raise NotImplementedError

    def vision_of(self, row):
        raise NotImplementedError


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def patch(rows: slice, columns: slice) -> np.ndarray:
    """A map [14, 14] blown up to the model's size, hot in a rectangle of cells."""
    coarse = np.zeros((GRID, GRID), np.float32)
    coarse[rows, columns] = 1
    return coarse.ravel()[cells((SIDE, SIDE))]


def sharp_share(image: np.ndarray, of: np.ndarray | None = None):
    """How much of the image (where `of` is hot) is as it was."""
    where = np.ones((SIDE, SIDE), bool) if of is None else of > 0
    return lambda seen: float((seen == image).all(2)[where].mean())


# the test of a map ---------------------------------------------------------------------------


@pytest.mark.parametrize("design", [*DESIGNS, Design(5, 2, True)])
def test_a_model_that_counts_sharp_cells_gives_one_half_for_every_order(design):
    image = noise()
    read = Reads(sharp_share(image))
    asked = []
    whole = read.ask
    read.ask = lambda pixels, rows, progress=None: asked.append(len(pixels)) or whole(pixels, rows)
    found = areas(read, image, 3, 1, patch(slice(2, 5), slice(2, 5)), design, seed=0)
    assert list(found.values()) == pytest.approx([0.5] * len(found), abs=0.01)
    assert len(found) == (6 if design.middle else 4)
    assert asked == [design.answers]


def test_a_map_of_what_the_model_reads_is_better_than_elsewhere_and_than_the_middle():
    image, heat = noise(), patch(slice(0, 4), slice(0, 4))
    found = areas(Reads(sharp_share(image, heat)), image, 0, 1, heat, Design(8, 3, True), seed=0)
    assert found["deletion"] == pytest.approx((1 + 2 * (1 - 16 / 16) + 0) / 16, abs=0.03)
    assert found["deletion"] < found["deletion_random"] - 0.2
    assert found["deletion"] < found["deletion_centre"] - 0.2
    assert found["insertion"] > found["insertion_random"] + 0.2
    assert found["insertion"] > found["insertion_centre"] + 0.2


def test_the_areas_of_an_image_depend_on_it_and_the_seed_alone():
    image, heat = noise(), patch(slice(0, 4), slice(3, 9))
    read = Reads(sharp_share(image, heat))
    one, again, other = (areas(read, image, 5, 1, heat, DESIGNS[0], seed) for seed in (1, 1, 2))
    assert one == again
    assert one["deletion_random"] != other["deletion_random"]


def test_blurring_takes_equal_shares_in_order():
    order = np.arange(CELLS)[::-1]
    masks = blurring(order, 8)
    assert masks.sum(1).tolist() == [24, 49, 74, 98, 122, 147, 172]
    assert masks[0][-24:].all()
    assert (masks[1:] >= masks[:-1]).all()


def test_a_moved_map_has_the_same_values_in_other_places():
    heat = np.arange(CELLS, dtype=float).reshape(GRID, GRID)
    rng = np.random.default_rng(0)
    for _ in range(50):
        other = moved(heat, rng)
        assert sorted(other.ravel()) == sorted(heat.ravel())
        assert (other != heat).any()


@pytest.mark.parametrize("size", [(300, 300), (224, 160), (14, 15), (8, 8)])
def test_cells_are_numbered_row_by_row(size):
    found = cells(size)
    assert found.shape == size
    assert found[0, 0] == 0
    assert found.max() == found[-1, -1] < CELLS


def test_border_ratio():
    size = (100, 100)
    frame = np.ones(size)
    frame[10:-10, 10:-10] = 0
    assert border_ratio(np.ones(size)) == pytest.approx(1)
    assert border_ratio(frame) == pytest.approx(1 / 0.36)
    assert border_ratio(1 - frame) == 0
    assert border_ratio(np.zeros(size)) is None
    assert border_ratio(frame - 2 * (1 - frame)) == pytest.approx(1 / 0.36)  # only what speaks for


# making maps ---------------------------------------------------------------------------------


def test_occlusion_is_hot_where_the_model_looks():
    heat = patch(slice(3, 4), slice(7, 8))
    image = noise()
    read = Reads(lambda seen: 0.9 * sharp_share(image, heat)(seen))
    (found,) = ByOcclusion(read)([image], np.array([0]), np.array([1]))
    np.testing.assert_allclose(found, 0.9 * heat, atol=1e-6)
    (against,) = ByOcclusion(read)([image], np.array([0]), np.array([0]))
    np.testing.assert_allclose(against, -0.9 * heat, atol=1e-6)


@pytest.fixture(scope="module")
def deployed() -> DeployedRun:
    vision = open_vision("untrained:test_resnet", input_size=(64, 64))
    vision.classes = ("a", "b", "c")
    vision.head = _head(vision, 0)
    return DeployedRun(vision, lambda: None, [_head(vision, 1), _head(vision, 2)], np.array([1, 0]))


def _head(vision, seed):
    from beholder.models.classifier_heads import LinearHead

    dim = max(part.stop for part in vision.layout.values())
    weight = torch.randn(3, dim, generator=torch.Generator().manual_seed(seed))
    return LinearHead(torch.zeros(dim), torch.ones(dim), weight, weight[:, 0], 3, True)


def test_gradcam_asks_the_head_that_has_not_seen_the_image(deployed):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mapper = ByGradient(deployed)
    both = mapper([image, image], np.array([0, 1]), np.array([1, 1]))
    assert both.shape == (2, 64, 64)
    (alone_,) = mapper([image], np.array([1]), np.array([1]))
    np.testing.assert_allclose(both[1], alone_, rtol=1e-4, atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-3
    assert mapper.forgetful([image], np.array([1]), np.array([1]), 0).shape == (1, 64, 64)


def test_of_two_classes_the_difference_is_explained():
    read = Reads(lambda image: 0.5)
    logits = torch.tensor([0.0, 3.0])
    assert evidence_for(read, 1)(logits) == 3
    assert evidence_for(read, 0)(logits) == -3


@pytest.mark.parametrize(
    ("seconds", "design", "images"),
    [
        (float("inf"), 0, 64),
        (12 * 0.1 + 30 * (0.1 + 0.72), 0, 30),
        (12 * 0.1 + 19.5 * (0.1 + 0.72), 1, 29),
        (12 * 0.1 + 20.5 * (0.1 + 0.10), 2, 20),
    ],
)
def test_the_most_thorough_test_that_there_is_time_for(seconds, design, images):
    found, count = planned(Allowance(seconds + 0.01), 0.1, 0.01, 100)
    assert DESIGNS.index(found) == design
    assert count == images


def test_too_little_time_names_what_is_needed():
    with pytest.raises(TooLittleTimeError) as caught:
        planned(Allowance(1.0), 0.1, 0.01, 100)
    assert caught.value.needs == pytest.approx(12 * 0.1 + 20 * (0.1 + 10 * 0.01))
    assert planned(Allowance(3.0), 0.1, 0.01, 5)[1] == 5


# what is said --------------------------------------------------------------------------------


def gain(estimate: float, low: float | None) -> Value:
    return Value(estimate=estimate, low=low, high=None if low is None else 2 * estimate - low)


@pytest.mark.parametrize(
    ("deletion", "insertion", "survives", "border", "severity", "said"),
    [
        ((0.1, 0.001), (0.1, 0.001), 0.49, ("a", 2.0), "good", "show what the model uses"),
        ((0.1, 0.0), (0.1, 0.1), 0.1, None, "look", "not evidence on this model"),
        ((0.1, 0.1), (-0.1, -0.2), 0.1, None, "look", "not evidence on this model"),
        ((0.1, 0.1), (0.1, 0.1), 0.5, None, "look", "stay much the same"),
        ((0.1, 0.1), (0.1, 0.1), None, None, "good", "show what the model uses"),
        ((0.1, 0.1), (0.1, 0.1), 0.1, ("a", 2.01), "look", "'a' leans on the border"),
        ((0.1, None), (0.1, None), 0.1, None, "none", "did better than"),
        ((0.1, None), (-0.1, None), 0.1, None, "none", "did no better than"),
    ],
)
def test_finding(deletion, insertion, survives, border, severity, said):
    gains = {"deletion_gain": gain(*deletion), "insertion_gain": gain(*insertion)}
    found = finding(gains, survives, border, 64)
    assert found[0] == severity
    assert said in found[1]
    assert "64 images" in found[1] or said == "stay much the same"


def test_a_map_no_better_than_the_middle_says_so():
    good = {"deletion_gain": gain(0.1, 0.1), "insertion_gain": gain(0.1, 0.1)}
    centre = {f"{kind}_gain_centre": gain(0.0, -0.1) for kind in ("deletion", "insertion")}
    assert "in the middle" not in finding(good, None, None, 64)[1]
    assert (
        "a spot in the middle of the image does as well" in finding(good | centre, 0, None, 64)[1]
    )
    centre["deletion_gain_centre"] = gain(0.1, 0.05)
    assert "in the middle" not in finding(good | centre, 0, None, 64)[1]


def measured(
    n: int = 60, tested: int = 40, better: float = 0.2, border=None, wrong: int = 12, kind="classes"
):
    """Two classes, `wrong` mistakes; maps that are `better` than elsewhere."""
    labels = np.arange(n) % 2
    predicted = np.where(np.arange(n) < wrong, 1 - labels, labels)
    confidence = np.linspace(0.55, 0.99, n)
    p = np.where(predicted == 1, confidence, 1 - confidence)
    evidence = planted.evidence(labels, np.stack([1 - p, p], 1), classes=("crack", "good"))
    evidence.kind = kind
    ids, rng = evidence.frame["id"].to_list(), np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, tested)
    faithfulness = pl.DataFrame(
        {
            "id": ids[:tested],
            "answer": predicted[:tested],
            "deletion": base - better + rng.normal(0, 0.02, tested),
            "insertion": base + better + rng.normal(0, 0.02, tested),
            "deletion_random": base,
            "insertion_random": base,
            "deletion_centre": pl.Series([None] * tested, dtype=pl.Float64),
            "insertion_centre": pl.Series([None] * tested, dtype=pl.Float64),
            "border": pl.Series(border or [1.0] * tested, dtype=pl.Float64),
        }
    )
    maps = [
        (f"explanations/{i}", id, role, label, False)
        for i, (id, role, label) in enumerate(
            (id, role, label) for id, role, labels in wished(evidence) for label in labels
        )
    ]
    schema = {"picture": pl.String, "id": pl.String, "role": pl.String}
    schema |= {"label": pl.Int64, "empty": pl.Boolean}
    evidence.records["explanations"] = {
        "faithfulness": faithfulness,
        "sanity": pl.DataFrame({"id": ids[:2], "survives": [0.1, -0.3]}),
        "maps": pl.DataFrame(maps, schema, orient="row"),
        "how": pl.DataFrame({"method": ["gradcam"], "steps": [8], "moves": [3]}),
    }
    return evidence


def test_maps_that_beat_themselves_elsewhere_are_good():
    section = summarise(measured(), OPTIONS)
    assert section.severity == "good"
    assert section.values["deletion_gain"].estimate == pytest.approx(0.2, abs=0.01)
    assert section.values["deletion_gain"].low > 0.18
    assert section.values["survives"].estimate == pytest.approx(-0.1)
    assert section.n == 40
    columns = ["id", "method", "deletion", "insertion", "deletion_random", "insertion_random"]
    assert section.frame("faithfulness").columns == columns


def test_maps_that_do_not_are_not_evidence():
    assert summarise(measured(better=-0.2), OPTIONS).severity == "look"
    assert summarise(measured(better=0.0), OPTIONS).severity == "look"


def test_below_twenty_images_nothing_is_decided():
    section = summarise(measured(tested=19), OPTIONS)
    assert section.severity == "none"
    assert "too few to judge by" in section.finding


def test_few_judged_images_are_a_hint():
    section = summarise(measured(n=25, tested=25, wrong=2), OPTIONS)
    assert (section.severity, section.finding[:19]) == ("look", "With only 25 images")


@pytest.mark.parametrize(("maps", "named"), [(5, True), (4, False)])
def test_a_class_leans_on_the_border_only_where_enough_maps_say_so(maps, named):
    border: list = [1.0] * 40
    rows = [row for row in range(12, 40) if row % 2 == 0]  # right answers 'crack'
    crack = [1, 3, 5, 7, 9, 11, *rows]
    for row in crack:
        border[row] = None
    for row in crack[:maps]:
        border[row] = 2.5
    section = summarise(measured(border=border), OPTIONS)
    assert ("'crack' leans on the border" in section.finding) is named
    assert section.frame("border").row(0) == ("crack", maps, 2.5)


def test_a_black_box_that_takes_too_long_says_how_long():
    evidence = measured()
    times = pl.DataFrame({"needs": [81.4], "left": [14.0]})
    evidence.records["explanations"] = {"too_long": times}
    section, _ = SECTIONS["explanations"].run(evidence, OPTIONS)
    assert section.status == "not_applicable"
    assert section.finding == "Explaining a black box takes 81 s; the budget had 14 s."


@pytest.mark.parametrize("kind", ["unlabelled", "one_class", "multilabel"])
def test_without_an_answer_there_is_nothing_to_explain(kind):
    section, _ = SECTIONS["explanations"].run(planted.of_kind(kind), OPTIONS)
    assert section.status == "not_applicable"
    assert section.finding


# what is shown -------------------------------------------------------------------------------


def test_four_sure_four_unsure_and_the_eight_worst_mistakes_with_both_classes():
    wishes = wished(measured())
    assert len({id for id, *_ in wishes}) == 16
    assert [sum(role == own for _, own, _ in wishes) for role in ROLES] == [4, 4, 8, 0]
    assert {len(labels) for _, role, labels in wishes if role == ROLES[2]} == {2}
    first = [role for _, role, _ in wishes[:8]]
    assert [first.count(role) for role in ROLES] == [2, 2, 4, 0]
    worst = [id for id, role, _ in wishes if role == ROLES[2]]
    errors = mistakes.triaged(measured())["id"].to_list()
    assert sorted(worst) == sorted(errors[:8])


@pytest.mark.parametrize("wrong", [0, 1, 60])
def test_any_number_of_mistakes_will_do(wrong):
    wishes = wished(measured(wrong=wrong))
    assert sum(role == ROLES[2] for _, role, _ in wishes) == min(wrong, 8)


def test_without_labels_the_surest_and_the_least_sure_answers_are_shown():
    evidence = measured(kind="unlabelled")
    wishes = wished(evidence)
    assert [sum(role == own for _, own, _ in wishes) for role in ROLES] == [8, 8, 0, 0]
    assert {shot.bucket for shot in summarise(evidence, OPTIONS).pictures} == {"sure", "unsure"}


def test_beside_each_image_stands_its_map_and_the_mistakes_get_theirs():
    evidence = measured()
    section = summarise(evidence, OPTIONS)
    assert len(section.pictures) == 16
    worst = [picture for picture in section.pictures if picture.bucket == "worst mistakes"]
    assert {len(picture.beside) for picture in worst} == {2}
    one = worst[0]
    assert one.overlay == ""
    assert [other.id for other in one.beside] == [one.id, one.id]
    assert all(other.overlay.startswith("explanations/") for other in one.beside)
    assert one.beside[0].alt.startswith("heat map of what speaks for")
    shown = mistakes.summarise(evidence, OPTIONS).pictures
    by_id = {picture.id: picture.overlay for picture in shown}
    assert by_id[one.id] == one.beside[0].overlay
    assert mistakes.summarise(planted.constant(), OPTIONS).pictures[0].overlay == ""


def test_an_overlay_has_the_shape_of_the_thumbnail_and_is_clear_where_nothing_is():
    heat = np.zeros((50, 50))
    heat[:, :25] = 1
    whole = laid_over(heat, 300, 600, "squash")
    assert whole.shape == (96, 192, 4)
    assert whole.dtype == np.uint8
    assert (whole[:, :90, 3] > 180).all()
    assert not whole[:, 100:, 3].any()
    inside = laid_over(heat, 300, 600, "center")  # the model sees the middle half
    assert not inside[:, :48, 3].any()
    assert (inside[:, 50:94, 3] > 180).all()
    assert not inside[:, 98:, 3].any()
    assert not laid_over(-heat, 10, 10, "squash")[..., 3].any()


def over(seed: int = 0) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).random((28, 28)), 2)
    return laid_over(smooth - smooth.min(), 100, 100, "squash")


def test_overlays_keep_their_alpha_through_every_reduction():
    made = pictures.render_pictures(lambda id: over(), {"explanations/0": False})
    for made, *_ in pictures.reductions(made):  # noqa: B020
        (webp,) = made["explanations/0"].values()
        with Image.open(io.BytesIO(webp)) as image:
            assert image.mode == "RGBA"
            assert image.getchannel("A").getextrema()[1] > 150
        assert len(webp) < 8_000


def overlaid(count: int = 1) -> Section:
    cards = [
        Picture(
            id=f"secret/{i}.png",
            caption="a",
            alt=f"file secret/{i}.png",
            overlay=f"explanations/{2 * i}",
            beside=[
                Picture(
                    id=f"secret/{i}.png",
                    caption="b",
                    alt="map",
                    overlay=f"explanations/{2 * i + 1}",
                )
            ],
        )
        for i in range(count)
    ]
    return Section(id="explanations", title="Explanations", finding="Said.", pictures=cards)


def test_overlays_count_among_the_240_pictures():
    wanted = pictures.wanted_pictures([overlaid(200)])
    assert len(wanted) == 240
    assert sum(id.startswith("explanations/") for id in wanted) == 160


def picture_of(id: str) -> np.ndarray:
    return over() if id.startswith("explanations/") else noise()


def page(section: Section) -> str:
    made = pictures.render_pictures(picture_of, pictures.wanted_pictures([section]))
    whole = dataclasses.replace(fake.report(pictures=False), sections=[section], pictures=made)
    return whole.to_html()


def test_a_heat_map_lies_over_its_picture_with_a_box_to_tick():
    text = page(overlaid())
    assert (
        len(re.findall(r'<img class="overlay" src="data:image/webp;base64,[^"]+" alt=""', text))
        == 2
    )
    assert len(re.findall(r'<label class="heat"><input type="checkbox"', text)) == 2
    assert text.count(" checked>") == 1  # beside: on from the start
    assert text.count('<div class="tools heats" hidden>') == 1
    assert 'class="overlay" src' not in page(Section(id="a", title="A", finding="B."))


def test_the_assets_stay_small():
    assert len(html.asset("report.js")) < 15_000
    assert len(html.asset("report.css")) < 20_000


def test_anonymous_reports_find_their_overlays_and_tell_no_file_name():
    (section,), _ = anonymous.anonymised([overlaid(12)], Verdict(sentence="secret/3.png is bad"))
    (whole,) = [overlaid(12)]
    made = {anonymous.alias(id) for id in pictures.wanted_pictures([whole])}
    shown = list(pictures.shown(section))
    assert all(picture.id in made and picture.overlay in made for picture in shown)
    assert "secret" not in str(section.to_dict())


def black_box(images: torch.Tensor) -> torch.Tensor:
    """Logits [B, 2] by whether the upper half is the brighter one."""
    halves = images.float().mean((1, 3)).unflatten(1, (2, -1)).mean(2) / 32
    return torch.stack([halves[:, 0] - halves[:, 1], halves[:, 1] - halves[:, 0]], 1)


# all of it -----------------------------------------------------------------------------------


def test_a_study_makes_maps_tests_them_and_lays_them_over_its_mistakes(tmp_path):
    data = folders(tmp_path / "data", ["one", "seven", "nine"], 16)
    options = SMALL | {"sections": ("accuracy", "mistakes", "explanations"), "without": ()}
    with alone(tmp_path / "cache") as patch:
        patch.setattr(explaining, "TESTED", 20)
        patch.setattr(explaining, "DESIGNS", (Design(3, 1, True),))
        report = study(data, out=tmp_path / "run", budget=0, **options)
    section = report["explanations"]
    assert section.status == "measured", section.finding
    assert section.budget.used == 20
    assert len(section.frame("faithfulness")) == 20
    for picture in pictures.shown(section):
        assert picture.id in report.pictures
        assert not picture.overlay or picture.overlay in report.pictures
    assert all(picture.overlay in report.pictures for picture in report["mistakes"].pictures)
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count('class="overlay"') > len(section.pictures)
    assert explanations.explained(measured()).height == 60


@pytest.mark.parametrize(("budget", "status"), [(0, "measured"), (0.02, "not_applicable")])
def test_a_black_box_is_explained_by_occlusion_if_there_is_time(tmp_path, budget, status):
    data = folders(tmp_path / "data", ["one", "seven"], 4)
    options = SMALL | {"sections": ("explanations",), "without": (), "model": black_box}
    with alone(tmp_path / "cache") as patch:
        patch.setattr(explaining, "MAPS", 2)
        patch.setattr(explaining, "DESIGNS", (Design(3, 1, False),))
        report = study(
            data, out=tmp_path / "run", classes=("one", "seven"), budget=budget, **options
        )
    section = report["explanations"]
    assert section.status == status
    if status == "measured":
        assert set(section.frame("faithfulness")["method"]) == {"occlusion"}
        assert section.method[0].startswith("A black box")
    else:
        assert re.fullmatch(
            r"Explaining a black box takes \d+ s; the budget had \d+ s.", section.finding
        )
