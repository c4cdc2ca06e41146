"""A detector on disk: tensors and facts, no pickle; written beside and renamed."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised

from beholder.core.files import storage_errors, write_bytes, write_json
from beholder.core.registry import checked, find
from beholder.models.open import Spec, open_vision
from beholder.models.run import is_run, save_model
from beholder.models.run import load as load_run

from .pictures import DetectorError

if TYPE_CHECKING:
    from .base import Detector

VERSION = 1
TENSORS, FACTS, MODEL = "detector.safetensors", "detector.json", "model"


def save(detector: Detector, directory: Path) -> Path:
    """Replace what `directory` holds, if that is a detector.

    Raises:
        DetectorError: it holds other things.
    """
    if directory.exists() and not (directory / FACTS).is_file() and any(directory.iterdir()):
        raise DetectorError(f"{directory} is not empty, and no detector.", "Choose another place.")
    with storage_errors(directory):
        parent = directory.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".detector-", dir=parent))
        try:
            _write(detector, temporary)
            temporary.chmod(0o755)
            if directory.exists():
                shutil.rmtree(directory)
            temporary.rename(directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return directory


def _write(detector: Detector, directory: Path) -> None:
    tensors = {name: x.detach().cpu().contiguous() for name, x in detector._tensors().items()}
    write_bytes(directory / TENSORS, serialised(tensors))
    facts = {
        "version": VERSION,
        "beholder": importlib.metadata.version("beholder"),
        "detector": detector.called,
        "row": getattr(getattr(type(detector), "entry", None), "row", None),
        "options": detector.options,
        "seed": detector.seed,
        "references": detector.references,
        "model": _model_facts(detector, directory),
    }
    write_json(directory / FACTS, facts)


def _model_facts(detector: Detector, directory: Path) -> dict[str, Any] | None:
    """How `load` finds the model: by its name (None = the embedded one), or in `model/`."""
    if detector.model is None:
        return None
    named = detector.spec is None or _is_name(detector.spec)
    if not named:
        save_model(detector.model, {}, directory / MODEL)
    spec = detector.spec if named else None
    return {"spec": spec, "copied": not named, **detector.model.describe()}


def load(directory: Path, device: str) -> Detector:
    """Raises `DetectorError` where `Detector.load` does."""
    try:
        facts = json.loads((directory / FACTS).read_text())
        with safe_open(directory / TENSORS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        target = find("detector", facts["detector"]).load()
        detector: Detector = target(**checked(target, facts["options"], "detector"))
        detector.seed, detector.references = facts["seed"], facts["references"]
        known = facts["model"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DetectorError(
            f"{directory} is no readable detector: {error}.", "Make one: beholder guard fit."
        ) from error
    if known is not None:
        copied = known["copied"]
        model = load_run(directory / MODEL) if copied else open_vision(known["spec"])
        if model.weights_hash != known["weights"]:
            raise DetectorError(
                f"The model of {directory} has other weights than when it was made.",
                "Fit the detector again.",
            )
        detector.use(model, directory / MODEL if copied else known["spec"], device)
    detector._take_up(tensors)
    return detector


def _is_name(spec: Spec) -> bool:
    """Whether `open_vision` finds the same model by this text anywhere."""
    return isinstance(spec, str) and not spec.startswith("local-dir:") and not is_run(Path(spec))
