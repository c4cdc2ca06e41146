"""PGD on whole pixels, the Square attack, and the ladder of sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError
from beholder.trust.attacks.base import Goal, frozen
from beholder.trust.attacks.ladder import Ladder
from beholder.trust.attacks.pgd import PGDWhole, ascend_whole
from beholder.trust.attacks.square import Square, side_of


class Brighter(nn.Module):
    """Class 1 where the mean (of 255) is above the threshold that the first pixel names: 10 each.

    The images keep their number of `seen` in a list.
    """

    def __init__(self, thresholds: list[float]) -> None:
        super().__init__()
        self.thresholds, self.seen = torch.tensor(thresholds), []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        level = 255 * images.flatten(1)[:, 1:].mean(1)
        which = (255 * images[:, 0, 0, 0].detach() / 20).round().long()
        above = level - self.thresholds[which]
        return torch.stack([-above, above], 1)


def grey(count: int, level: int = 100, side: int = 8) -> Tensor:
    """Constant images; the first pixel tells them apart."""
    images = torch.full((count, 3, side, side), level / 255)
    images[:, 0, 0, 0] = torch.arange(count) * 20 / 255
    return images


def own_seed(row: int, use: str) -> int:
    return 1000 * row + len(use)


def ladder(thresholds: list[float], rows: list[int] | None = None, **told) -> Ladder:
    images = grey(len(thresholds))
    rows = list(range(len(thresholds))) if rows is None else rows
    labels = torch.zeros(len(rows), dtype=torch.long)
    model = Brighter(thresholds)
    seed = lambda row, use: own_seed(rows[row], use)  # noqa: E731
    return Ladder(model, images[rows], labels, (1, 2, 4), seed, **told)


def test_margins_by_hand():
    logits = torch.tensor([[2.0, 5.0, 1.0], [4.0, 0.0, 3.0]])
    assert Goal(labels=torch.tensor([0, 0])).margin(logits).tolist() == [3, -1]
    assert Goal(targets=torch.tensor([0, 2])).margin(logits).tolist() == [-3, -1]
    with pytest.raises(ArgumentError, match="not a custom goal"):
        Goal(custom=lambda logits, images: logits[:, 0] > 0).margin(logits)


def test_a_part_of_a_goal_is_that_of_its_rows():
    rows = torch.tensor([2, 0])
    assert Goal(labels=torch.tensor([5, 6, 7])).part(rows).labels.tolist() == [7, 5]
    assert Goal(targets=torch.tensor([5, 6, 7])).part(rows).targets.tolist() == [7, 5]


@pytest.mark.parametrize("eps", [3 / 255, 0.01, 0.1])
def test_whole_pixels_stay_in_the_ball_of_images_that_are_not_whole(eps: float):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    images = torch.rand(5, 3, 4, 4)
    labels = model(images).argmax(1)
    found = PGDWhole(eps, 5).attack(model, images, Goal(labels=labels))
    assert torch.allclose(255 * found.images, (255 * found.images).round(), atol=1e-4)
    assert (found.images - images).abs().max() <= eps + 1e-6
    assert torch.equal(found.success, found.success_uint8)


def test_a_linear_model_is_driven_to_the_corner_of_the_ball():
    torch.manual_seed(0)
    weight = torch.randn(48)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    model[1].weight.data = torch.stack([weight, -weight])
    model[1].bias.data = torch.tensor([1e3, 0.0])  # never fooled
    images = torch.full((1, 3, 4, 4), 0.4)
    goal = Goal(labels=torch.tensor([0]))
    found = ascend_whole(model, images, goal, 2 / 255, 10, images)
    corner = images - 2 / 255 * weight.sign().view(1, 3, 4, 4)
    assert torch.allclose(found, corner, atol=1e-6)


def test_an_image_that_is_fooled_leaves_the_batch():
    model, images = Brighter([100.2, 500.0, 100.9]), grey(3)
    with frozen(model):
        goal = Goal(labels=torch.zeros(3, dtype=torch.long))
        found = ascend_whole(model, images, goal, 2 / 255, 4, images)
    assert model.seen == [3, 3, 1, 1, 1]  # one step of 1.25 levels is enough for two
    assert model(found).argmax(1).tolist() == [1, 0, 1]


def test_squares_shrink_by_the_schedule_of_the_authors():
    shares = [0.05, 0.025, 0.0125, 0.00625]
    assert [side_of(q, 10_000, 0.05, 100, 100) for q in (10, 11, 51, 201)] == [
        round((share * 10_000) ** 0.5) for share in shares
    ]
    assert side_of(499, 500, 0.05, 4, 4) == 1
    assert side_of(0, 500, 1.0, 1, 9) == 1
    assert side_of(0, 500, 1.0, 6, 9) == 5


def test_the_square_attack_changes_values_by_its_size_or_to_the_border():
    model, images = Brighter([101.5, 500.0]), grey(2)
    found = Square(2 / 255, 30).attack(model, images, Goal(labels=torch.tensor([0, 0])))
    change = (255 * (found.images - images)).round().abs()
    assert set(change.flatten().tolist()) <= {0.0, 2.0}
    assert found.queries <= 30


def test_the_square_attack_asks_no_more_about_what_is_fooled():
    model, images = Brighter([99.0, 500.0]), grey(2)
    Square(2 / 255, 12).search(model, images, Goal(labels=torch.tensor([1, 0])), 0)
    assert model.seen[0] == 2
    assert sum(model.seen) <= 24
    model.seen.clear()
    Square(2 / 255, 12).search(model, images[:1], Goal(labels=torch.tensor([0])), 0)
    assert len(model.seen) == 1  # class 1 already


def test_the_square_attack_climbs_where_it_is_worth_it():
    model, images = Brighter([102.0]), grey(1)
    goal = Goal(labels=torch.tensor([0]))
    few, many = (Square(4 / 255, queries).search(model, images, goal, 0) for queries in (1, 200))
    assert many.mean() > few.mean()
    assert model(many).argmax(1).item() == 1


@pytest.mark.parametrize("told", [{"eps": 0}, {"queries": 0}, {"share": 0}, {"share": 1.1}])
def test_settings_that_are_none_are_refused(told):
    with pytest.raises(ArgumentError, match="eps = "):
        Square(**told)
    with pytest.raises(ArgumentError, match="both must be above 0"):
        PGDWhole(eps=0)


def test_the_smallest_size_is_the_one_that_is_needed():
    smallest, pictures, answers = ladder([100.5, 101.5, 103.5, 109.0]).pgd(20)
    assert smallest.tolist() == [1, 2, 4, 0]
    assert answers.tolist() == [1, 1, 1, 0]
    change = (255 * (pictures - grey(4))).abs().flatten(1).amax(1).round()
    assert change.tolist() == [1, 2, 4, 4]


def test_one_step_and_noise_are_told_apart_from_the_attack():
    it = ladder([100.5, 101.5, 103.5, 109.0])
    assert it.fgsm(torch.ones_like(it.images)).tolist() == [1, 2, 4, 0]
    assert it.fgsm(-torch.ones_like(it.images)).tolist() == [0, 0, 0, 0]
    assert it.noise().tolist() == [0, 0, 0, 0]  # its mean is far below half a level


def test_more_steps_at_one_size_say_which_rows_are_fooled():
    it = ladder([100.5, 101.5, 103.5])
    assert it.at(torch.tensor([0, 2]), 2, 10).tolist() == [True, False]
    assert it.at(torch.tensor([], dtype=torch.long), 2, 10).tolist() == []


def test_an_image_does_not_depend_on_its_neighbours():
    thresholds = [100.5, 102.5, 103.9]
    whole, alone = ladder(thresholds).pgd(6), ladder(thresholds, [1]).pgd(6)
    assert torch.equal(whole[0][1:2], alone[0])
    assert torch.equal(whole[1][1:2], alone[1])


def test_restarts_only_try_what_was_not_fooled():
    it = ladder([100.5, 500.0], restarts=3)
    smallest, _, _ = it.pgd(2)
    assert smallest.tolist() == [1, 0]
    squares, _, answers = it.square(20)
    assert squares[1].item() == 0
    assert answers[1].item() == 0
