"""COCO's twelve figures of detected boxes, by faster-coco-eval (the numbers of pycocotools)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from torch import Tensor

from beholder.core.predictions import Detections

NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def evaluate(
    detections: Sequence[Detections], targets: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Figures by name, 0..1; NaN where there is nothing of that size to be found.

    Args:
        targets: per image `boxes` [N, 4] xyxy, `labels` [N]; maybe `area` [N], `iscrowd` [N].
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = [row for image, target in enumerate(targets) for row in _truth(image, target)]
    for number, row in enumerate(truth, 1):
        row["id"] = number
    labels = {int(row["category_id"]) for row in truth} | {
        int(label) for found in detections for label in found.labels
    }
    if not truth:
        return dict.fromkeys(NAMES, float("nan"))
    record = {
        "images": [{"id": image} for image in range(len(targets))],
        "categories": [{"id": label, "name": str(label)} for label in sorted(labels)],
        "annotations": truth,
    }
    with redirect_stdout(StringIO()):
        gold = COCO(record)
        found = [row for image, one in enumerate(detections) for row in _found(image, one)]
        if not found:
            return dict.fromkeys(NAMES, 0.0)
        judge = COCOeval_faster(gold, gold.loadRes(found), iouType="bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    figures = np.asarray(judge.stats, float)[: len(NAMES)]
    figures[figures < 0] = np.nan
    return dict(zip(NAMES, figures.tolist(), strict=True))


def _xywh(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _truth(image: int, target: Mapping[str, Tensor]) -> list[dict]:
    boxes = target["boxes"].tolist()
    areas = target["area"].tolist() if "area" in target else None
    crowds = target["iscrowd"].tolist() if "iscrowd" in target else [False] * len(boxes)
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": _xywh(box),
            "area": areas[i] if areas else (box[2] - box[0]) * (box[3] - box[1]),
            "iscrowd": int(crowds[i]),
        }
        for i, (box, label) in enumerate(zip(boxes, target["labels"].tolist(), strict=True))
    ]


def _found(image: int, one: Detections) -> list[dict]:
    rows = zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": int(label), "bbox": _xywh(box), "score": score}
        for box, score, label in rows
    ]
