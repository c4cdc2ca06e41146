"""What probes read features with: small classifiers whose one setting a part of the training rows
chooses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from beholder.metrics.neighbours import knn_predict, unit_rows
from beholder.train.objectives.off_the_shelf import Shelf, answers, decisions, fit_linear, search

STRENGTHS = np.logspace(-4, 3, 8)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
BATCH = 256


@dataclass(frozen=True)
class Part:
    """One round of learning and judging.

    Attributes:
        train, test: rows.
        label, unit: of all rows; -1 = no label.
        tune: [len(train)] the training rows that choose a setting.
    """

    train: np.ndarray
    test: np.ndarray
    label: np.ndarray
    unit: np.ndarray
    tune: np.ndarray


Answer = tuple[np.ndarray, str]
"""Class of every test row, and the setting that was chosen."""


def knn(x: np.ndarray, part: Part) -> Answer:
    """The likeliest of 20 weighted neighbours by cosine. `x`: [N, D]."""
    votes = knn_predict(x[part.test], x[part.train], part.label[part.train])
    return votes.argmax(1), f"k = {min(20, len(part.train))}"


def svm(x: np.ndarray, part: Part) -> Answer:
    """One-vs-rest linear SVM on features of length 1, C by cross-validation (row 24)."""
    unit = unit_rows(x)[:, None]
    present, label = np.unique(part.label[part.train], return_inverse=True)
    names = tuple(map(str, present))
    shelf = Shelf(unit[part.train], label, part.unit[part.train], names)
    strength = search("svm", shelf).strength
    classifier = fit_linear("svm", strength, unit[part.train, 0], label)
    return present[answers(decisions(classifier, unit[part.test]))], f"C = {strength:g}"


def linear(x: np.ndarray, part: Part) -> Answer:
    """Logistic regression on standardised features; C of 1e-4 .. 1e3, then fitted on all rows.

    With fewer rows than features the rows' own span is used: what is penalised does not look at
    directions without data, so the answer is the same.
    """
    seen, asked = standardised(x[part.train], x[part.test])
    if len(seen) < seen.shape[1]:
        basis, coordinates = np.linalg.qr(seen.T)
        seen, asked = coordinates.T, asked @ basis
    label = part.label[part.train]
    learn = ~part.tune
    best = STRENGTHS[len(STRENGTHS) // 2]
    if part.tune.any() and len(np.unique(label[learn])) > 1:
        model = _logistic(best, warm_start=True)
        right = []
        for strength in STRENGTHS:
            model.set_params(C=strength)
            _quietly(model, seen[learn], label[learn])
            right.append(np.mean(model.predict(seen[part.tune]) == label[part.tune]))
        best = STRENGTHS[int(np.argmax(right))]
    model = _quietly(_logistic(best), seen, label)
    return np.asarray(model.predict(asked)), f"C = {best:g}"


def _logistic(strength: float, warm_start: bool = False) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=1000, warm_start=warm_start)


def _quietly(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """Fitted; on separable classes a large C does not converge, which costs a probe nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def standardised(seen: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by mean and deviation of the first; constant features become 0."""
    mean, deviation = seen.mean(0), seen.std(0)
    scale = np.where(deviation > 1e-8, deviation, np.inf)
    return (seen - mean) / scale, (asked - mean) / scale


class Rates(nn.Module):
    """One linear layer per learning rate, side by side, on the same features: [B, D] -> [R, B, C].

    Args:
        normed: a BatchNorm without affine stands before them (as MAE does).
    """

    def __init__(self, dim: int, classes: int, normed: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False) if normed else nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(dim, classes) for _ in RATES)
        for weight, bias in zip(*[iter(self.heads.parameters())] * 2, strict=True):
            nn.init.normal_(weight, std=0.01)
            nn.init.zeros_(bias)

    def forward(self, features: Tensor) -> Tensor:
        x = self.norm(features)
        return torch.stack([head(x) for head in self.heads])


def linear_sgd(
    x: np.ndarray,
    part: Part,
    views: Callable[[int, np.ndarray], Tensor],
    epochs: int,
    normed: bool,
    seed: int,
) -> Answer:
    """The linear protocol of self-supervised papers; the rate is chosen on the tuning rows.

    SGD with momentum 0.9, no decay, cosine schedule over all steps, batches of 256.

    Args:
        x: [N, D] of the whole images, for choosing and judging.
        views: epoch and rows [B] -> features [B, D] of new crops and mirrors of those images.
    """
    present, label = np.unique(part.label[part.train], return_inverse=True)
    learn = np.flatnonzero(~part.tune)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = Rates(x.shape[1], len(present), normed)
    groups = [{"params": h.parameters(), "lr": r} for h, r in zip(heads.heads, RATES, strict=True)]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    steps = epochs * -(-len(learn) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(epochs):
        for batch in _batches(learn, seed, epoch):
            wanted = torch.from_numpy(label[batch]).expand(len(RATES), -1)
            found = heads(views(epoch, part.train[batch]))
            loss = nn.functional.cross_entropy(found.flatten(0, 1), wanted.flatten())
            optimiser.zero_grad()
            (loss * len(RATES)).backward()
            optimiser.step()
            schedule.step()
    heads.eval()
    with torch.inference_mode():
        tuned = heads(torch.from_numpy(x[part.train[part.tune]])).argmax(-1).numpy()
        right = (tuned == label[part.tune]).mean(1) if part.tune.any() else np.zeros(len(RATES))
        best = int(np.argmax(right))
        answer = heads(torch.from_numpy(x[part.test]))[best].argmax(-1).numpy()
    return present[answer], f"lr = {RATES[best]:g}"


def _batches(rows: np.ndarray, seed: int, epoch: int) -> Iterable[np.ndarray]:
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return (order[start : start + BATCH] for start in range(0, len(order), BATCH))
