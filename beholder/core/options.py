"""The options of `study`: the same names in Python, on the command line and in `run.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ArgumentError
from .sections import Severity

Share = Annotated[float, Field(gt=0, lt=1)]


class Options(BaseModel):
    """Resolved options; every default stands here once.

    Attributes:
        data: path, `scheme:PLACE`, or the name of built-in data.
        model: timm name (an encoder, unless `judge`), run directory, `local-dir:`, `.onnx`, `.pt2`.
        manifest: path or URL of what `beholder curate` wrote for this data.
        budget: minutes; 0 = no limit.
        target: accuracy wanted (0..1): the verdict then says whether it is reached.
        risk: wanted error rate of the operating point; None = half the measured error.
        fpr: share of trusted images that a guard may refuse.
        threat: 'adversarial' = attackers are expected, so that section may say `act`.
        unknown: a folder (or DATA) of images that must be refused.
        harden: train the head also on mildly changed copies, if that costs less than a point.
        finetune: train the last stages too, within `finetune_budget` minutes (None = 2 budgets).
        against: a run to compare with, image by image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    model: str | None = None
    judge: bool = False
    out: Path | None = None
    overwrite: bool = False
    budget: float = Field(6.0, ge=0)
    format: str | None = None
    label_column: str | None = None
    source_column: str | None = None
    split_column: str | None = None
    classes: tuple[str, ...] | None = None
    class_map: Path | None = None
    by_position: bool = False
    preprocess: Path | None = None
    root: Path | None = None
    manifest: str | None = None
    max_pixels: int = Field(178_956_970, gt=0)
    bins: int | None = Field(None, ge=2)
    crop: Literal["squash", "center"] = "squash"
    splits: int = Field(3, ge=1, le=20)
    seed: int = Field(0, ge=0)
    target: Share | None = None
    risk: Share | None = None
    fpr: Share = 0.05
    threat: Literal["adversarial"] | None = None
    unknown: str | None = None
    harden: bool = False
    finetune: bool = False
    finetune_budget: float | None = Field(None, gt=0)
    against: Path | None = None
    latency_ms: float | None = Field(None, gt=0)
    sections: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    device: str = "auto"
    workers: int | None = Field(None, ge=1)
    cache: bool = True
    strict: bool = False
    fail_on: Severity | None = None
    anonymous: bool = False

    @classmethod
    def parse(cls, **values: Any) -> Options:
        """Validated options. Raises `ArgumentError` that names option and value."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
            raise ArgumentError(f"{name} = {first['input']!r}: {first['msg']}.") from error
