"""Square attack: random squares of colour, kept where they help. Needs answers, no gradient.

Andriushchenko, Croce, Flammarion, Hein: "Square Attack: a query-efficient black-box adversarial
attack via random search", ECCV 2020 (Alg. 1, 2; linf). Authors' code: max-andr/square-attack.

We differ: an image leaves as soon as it is fooled, and towards a target too the margin is raised.

Example:
    >>> import torch
    >>> from torch import nn
    >>> from beholder.trust.attacks.base import Goal
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    >>> _ = nn.init.eye_(model[1].weight)
    >>> image = torch.full((1, 3, 2, 2), 0.5)
    >>> image[0, 0, 0, 0] = 0.6
    >>> found = Square(eps=0.2, queries=50).attack(model, image, Goal(labels=torch.tensor([0])))
    >>> bool(found.success_uint8), round(float(found.distance["linf"]), 3) <= 0.2
    (True, True)
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor, nn

from beholder.core.errors import ArgumentError
from beholder.core.registry import system

from .base import Attack, Goal

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After so many of 10,000 queries the share of the image that a square covers is halved."""
SAME = 1e-7
DRAWS = 10
"""Of a colour, until one differs from what is there."""


def side_of(query: int, queries: int, share: float, height: int, width: int) -> int:
    """Pixels of a square's side at this query: the shares shrink by the authors' schedule.

    Example:
        >>> [side_of(query, 10_000, 0.05, 224, 224) for query in (0, 11, 9_000)]
        [50, 35, 2]
    """
    halved = bisect_left(HALVINGS, query * 10_000 // queries)
    side = round((share / 2**halved * height * width) ** 0.5)
    return max(1, min(side, height - 1, width - 1))


def either(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """-1 or 1, by chance."""
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1


@system()
class Square(Attack):
    """Random search over squares of one colour that change every channel by `eps`.

    Args:
        eps: radius in pixel values of [0, 1].
        queries: forward passes per image.
        share: of the image that the first squares cover.
    """

    ball = "linf"

    def __init__(self, eps: float = 8 / 255, queries: int = 500, share: float = 0.05) -> None:
        if eps <= 0 or queries < 1 or not 0 < share <= 1:
            raise ArgumentError(
                f"eps = {eps}, queries = {queries}, share = {share}: eps above 0, one query is "
                "least, a share is above 0 and at most 1."
            )
        self.eps, self.radius, self.queries, self.share = eps, eps, queries, share

    @torch.no_grad()
    def search(self, model: nn.Module, images: Tensor, goal: Goal, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        count, channels, height, width = images.shape
        stripes = either((count, channels, 1, width), generator).to(images)
        best = (images + self.eps * stripes).clamp(0, 1)
        logits = model(best)
        top, left = goal.margin(logits), (~goal.reached(logits, best)).nonzero()[:, 0]
        for query in range(1, self.queries):
            if not len(left):
                break
            side = side_of(query - 1, self.queries, self.share, height, width)
            tried = best[left]
            for place, row in enumerate(left):
                _put_square(tried[place], images[row], self.eps, side, generator)
            part, logits = goal.part(left), model(tried)
            margin = part.margin(logits)
            better = margin > top[left]
            best[left[better]], top[left[better]] = tried[better], margin[better]
            left = left[~(better & part.reached(logits, tried))]
        return best


def _put_square(
    image: Tensor, clean: Tensor, eps: float, side: int, generator: torch.Generator
) -> None:
    """Change `image` [3, H, W] in one square, by a colour that it does not have there yet."""
    height, width = image.shape[1:]
    y = int(torch.randint(0, height - side + 1, (), generator=generator))
    x = int(torch.randint(0, width - side + 1, (), generator=generator))
    square = (slice(None), slice(y, y + side), slice(x, x + side))
    before = image[square].clone()
    for _ in range(DRAWS):
        colour = either((len(image), 1, 1), generator).to(image)
        image[square] = (clean[square] + eps * colour).clamp(0, 1)
        if (image[square] - before).abs().max() > SAME:
            return
