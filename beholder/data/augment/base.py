"""The role of a mixing: batches whose images, and labels with them, are mixed with one another.

It works on a batch of images in [0, 1] after all per-image transforms, on the batch's device. What
is drawn (`plan`) stands apart from what is done with it (`apply`, `targets`), so that each can be
checked alone; the numbers come from a generator that the loop seeds before every step.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from beholder.core.errors import ArgumentError
from beholder.core.registry import checked, find

Mode = Literal["batch", "pair", "elem"]
Box = tuple[int, int, int, int]
"""Top, bottom, left, right in pixels; bottom and right exclusive."""

ROUNDING = 1e-3


@dataclass(frozen=True)
class MixPlan:
    """What was drawn for one batch.

    Attributes:
        partner: long [B], the sample that each is mixed with (perhaps itself).
        lam: float32 [B], the weight of a sample's own label.
        mask: bool [B, 1, H, W], True = own pixel; None = no pixel is cut.
        kind: 'cut' (the partner's pixels where the mask is False), 'blend' (lam of own, the rest of
            the partner), 'erase' (0 where the mask is False), 'none'.
        box: where the mask is False, if it is one box for the whole batch.
        maker: which member of a `MixOneOf` drew it.
        stage: of the model, whose maps are cut instead of the images.
    """

    partner: Tensor
    lam: Tensor
    mask: Tensor | None
    kind: Literal["cut", "blend", "erase", "none"]
    box: Box | None = None
    maker: int | None = None
    stage: int | None = None

    @classmethod
    def unmixed(cls, batch: int) -> MixPlan:
        """Everything stays as it is."""
        return cls(torch.arange(batch), torch.ones(batch), None, "none")


class Mixing(abc.ABC):
    """Base of every mixing.

    Args:
        smoothing: label smoothing, done before mixing.
        sum_to_one: False = labels are multi-hot (for a BCE loss) and their sum is free.
    """

    role: ClassVar[str] = "augmentation"
    attends: bool = False

    def __init__(self, *, smoothing: float = 0.0, sum_to_one: bool = True) -> None:
        if not 0 <= smoothing < 1:
            raise ArgumentError(f"smoothing = {smoothing} is not in [0, 1).", "For example 0.1.")
        self.smoothing, self.sum_to_one = smoothing, sum_to_one

    def plan(self, batch: int, height: int, width: int, generator: torch.Generator) -> MixPlan:
        """Draw the numbers for one batch."""
        seed = int(torch.randint(2**62, (), generator=generator))
        return self.draw(batch, height, width, np.random.default_rng(seed))

    @abc.abstractmethod
    def draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> MixPlan:
        """What a mixing invents: the plan of one batch."""

    def apply(self, images: Tensor, plan: MixPlan, inplace: bool = False) -> Tensor:
        """Images [B, C, H, W] mixed by the plan; `inplace` overwrites them.

        Raises:
            ArgumentError: a blend of uint8 images.
        """
        if plan.kind == "none":
            return images
        partner = plan.partner.to(images.device)
        if plan.kind == "blend":
            if not images.is_floating_point():
                raise ArgumentError(f"{images.dtype} images cannot be blended.", "Give floats.")
            lam = plan.lam.to(images.device, images.dtype)[:, None, None, None]
            mixed = torch.lerp(images[partner], images, lam)
        elif plan.kind == "cut" and plan.box is not None:
            return _pasted(images, partner, plan.box, inplace)
        else:
            assert plan.mask is not None
            other = images[partner] if plan.kind == "cut" else images.new_zeros(())
            mixed = torch.where(plan.mask.to(images.device), images, other)
        return images.copy_(mixed) if inplace else mixed

    def targets(self, y: Tensor, plan: MixPlan, classes: int | None = None) -> Tensor:
        """Labels smoothed, then mixed by `lam`: float32 [B, C].

        Args:
            y: shares float [B, C], or numbers long [B] of `classes`.

        Raises:
            ArgumentError: labels that cannot be mixed.
        """
        return mixed_targets(self.dense(y, classes), plan.partner, plan.lam)

    def mix(
        self, images: Tensor, y: Tensor, generator: torch.Generator, classes: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """A batch [B, C, H, W] in [0, 1] (uint8 where nothing is blended) and its labels, mixed.

        Raises:
            ArgumentError: labels that cannot be mixed, or that do not fit the images.
        """
        if images.ndim != 4 or len(y) != len(images):
            raise ArgumentError(f"Images {tuple(images.shape)} and {len(y)} labels do not fit.")
        height, width = images.shape[2:]
        plan = self.plan(len(images), height, width, generator)
        return self.apply(images, plan), self.targets(y, plan, classes)

    def dense(self, y: Tensor, classes: int | None = None) -> Tensor:
        """Labels as smoothed shares, float32 [B, C]; see `targets`."""
        if not isinstance(y, Tensor):
            raise ArgumentError(
                f"Labels are a {type(y).__name__}, not a tensor: boxes and masks cannot be mixed.",
                "Train heads for detection and segmentation without --augment.",
            )
        y = one_hot(y, classes) if y.ndim == 1 else y.float()
        if self.sum_to_one and len(y):
            off = (y.sum(1) - 1).abs()
            if off.max() > ROUNDING:
                raise ArgumentError(
                    f"The labels of a sample sum to {float(y.sum(1)[off.argmax()]):g}, not to 1.",
                    "Multi-hot labels need sum_to_one=False and a BCE loss.",
                )
        rest = 1 / y.shape[1] if self.sum_to_one else 0.5
        return y * (1 - self.smoothing) + self.smoothing * rest


class AttentionMixing(Mixing):
    """Base of mixings whose label weights follow what the model attends to.

    The objective captures the attention during its one forward pass over the mixed images.
    """

    attends = True

    @abc.abstractmethod
    def retarget(
        self, y: Tensor, plan: MixPlan, attention: Tensor, logits: Tensor | None = None
    ) -> Tensor:
        """Targets float32 [B, C] from labels, plan, attention [B, N] (rows sum to 1) and logits."""


class MixOneOf(Mixing):
    """One of several mixings per batch, or none.

    Args:
        members: (probability, mixing); what is missing to 1 is the chance of no mixing. All treat
            labels alike (`smoothing`, `sum_to_one`).

    Example:
        >>> from beholder.data.augment.cutmix import CutMix
        >>> from beholder.data.augment.mixup import Mixup
        >>> mixing = MixOneOf([(0.5, CutMix()), (0.3, Mixup(alpha=0.8))])
        >>> chance = torch.Generator().manual_seed(0)
        >>> plans = [mixing.plan(4, 8, 8, chance).kind for _ in range(1000)]
        >>> [round(plans.count(kind), -2) for kind in ("cut", "blend", "none")]
        [500, 300, 200]
    """

    def __init__(self, members: Sequence[tuple[float, Mixing]]) -> None:
        self.odds = [p for p, _ in members]
        if not members or min(self.odds) < 0 or sum(self.odds) > 1 + 1e-9:
            raise ArgumentError(
                f"{self.odds} are no probabilities of mixings.", "They are >= 0 and sum to <= 1."
            )
        self.members = [mixing for _, mixing in members]
        first = self.members[0]
        for other in self.members[1:]:
            if (first.smoothing, first.sum_to_one) != (other.smoothing, other.sum_to_one):
                raise ArgumentError(
                    f"smoothing and sum_to_one are {first.smoothing}, {first.sum_to_one} of one "
                    f"mixing, {other.smoothing}, {other.sum_to_one} of another.",
                    "Give all of them the same.",
                )
        super().__init__(smoothing=first.smoothing, sum_to_one=first.sum_to_one)
        self.attends = any(mixing.attends for mixing in self.members)

    def draw(self, batch: int, height: int, width: int, rng: np.random.Generator) -> MixPlan:
        chosen = int(np.searchsorted(np.cumsum(self.odds), rng.random(), side="right"))
        if chosen == len(self.members):
            return MixPlan.unmixed(batch)
        return replace(self.members[chosen].draw(batch, height, width, rng), maker=chosen)

    def apply(self, images: Tensor, plan: MixPlan, inplace: bool = False) -> Tensor:
        if plan.maker is None:
            return images
        return self.members[plan.maker].apply(images, plan, inplace)

    def retarget(
        self, y: Tensor, plan: MixPlan, attention: Tensor, logits: Tensor | None = None
    ) -> Tensor:
        """As the mixing that drew the plan sees it; by `lam` where that asks no attention."""
        member = None if plan.maker is None else self.members[plan.maker]
        if not isinstance(member, AttentionMixing):
            return self.targets(y, plan)
        return member.retarget(y, plan, attention, logits)


def open_mixing(names: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> Mixing:
    """'cutmix', or 'cutmix+mixup' for one of them per batch, all equally often.

    Args:
        options: name -> arguments of that mixing.

    Raises:
        ArgumentError: a name or an argument that there is not.
    """
    parts = [part.strip() for part in names.split("+")]
    made = []
    for name in parts:
        target = find("augmentation", name).load()
        made.append(target(**checked(target, (options or {}).get(name, {}), "augmentation")))
    return made[0] if len(made) == 1 else MixOneOf([(1 / len(made), mixing) for mixing in made])


def one_hot(y: Tensor, classes: int | None) -> Tensor:
    """Numbers [B] as float32 [B, C].

    Raises:
        ArgumentError: `classes` is None, or a number is not below it.
    """
    if classes is None:
        raise ArgumentError("Labels are numbers, but nobody said of how many classes.")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        wrong = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise ArgumentError(f"Label {wrong} is none of 0 to {classes - 1}.")
    return F.one_hot(y.long(), classes).float()


def mixed_targets(y: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """lam y + (1 - lam) y[partner]. `y`: float [B, C], `partner`, `lam`: [B]."""
    share = lam.to(y.device, y.dtype)[:, None]
    return share * y + (1 - share) * y[partner.to(y.device)]


def pairing(mode: Mode, batch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Partner of each sample and the number of its draw, both [B].

    'batch' draws once, 'elem' for each sample, 'pair' for two samples that are each other's partner
    (an odd one is its own).
    """
    order = rng.permutation(batch)
    if mode == "batch":
        return order, np.zeros(batch, int)
    if mode == "elem":
        return order, np.arange(batch)
    partner, group = np.empty(batch, int), np.empty(batch, int)
    partner[order] = order[::-1]
    group[order] = np.minimum(np.arange(batch), np.arange(batch)[::-1])
    return partner, group


def check_draws(name: str, strength: float, prob: float, mode: Mode) -> None:
    """Refuse a Beta parameter, a probability or a mode that is none."""
    if strength <= 0:
        raise ArgumentError(f"{name} = {strength} is not above 0.", "1 draws uniformly.")
    check_prob(prob)
    if mode not in get_args(Mode):
        raise ArgumentError(f"mode = {mode!r} is not known.", "Known: batch, pair, elem.")


def check_prob(prob: float) -> None:
    if not 0 <= prob <= 1:
        raise ArgumentError(f"prob = {prob} is not in [0, 1].", "1 mixes every batch.")


def _pasted(images: Tensor, partner: Tensor, box: Box, inplace: bool) -> Tensor:
    """The partner's pixels inside of one box; only those are copied twice."""
    top, bottom, left, right = box
    patch = images[:, :, top:bottom, left:right][partner]
    out = images if inplace else images.clone()
    out[:, :, top:bottom, left:right] = patch
    return out
