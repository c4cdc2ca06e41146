"""A tiny network that learns digits in seconds."""

from __future__ import annotations

from beholder.core.images import Images
from beholder.core.model import VisionModel
from beholder.models.open import open_vision
from beholder.train.config import TrainConfig
from beholder.train.loop import fit
from beholder.train.objectives.classification import Classification

CONFIG = TrainConfig(epochs=6, batch_size=32, lr=3e-3, device="cpu", warmup=0.5)


def train_digits(learned: Images) -> VisionModel:
    model = open_vision("untrained:test_resnet", input_size=(32, 32))
    return fit(Classification(view="raw"), model, learned, CONFIG).model
