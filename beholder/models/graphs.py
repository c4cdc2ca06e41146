"""ONNX files and torch.export programs as given models."""

from __future__ import annotations

import ast
import hashlib
import importlib
import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from beholder.core.errors import MissingExtraError, ModelError

from .given_model import GraphModel
from .intake import Preprocess, Told, intake_of, names_in_order

ONNX_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
LOAD_ERRORS = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError, SafetensorError),
)
"""What torch, timm and safetensors raise on broken or foreign files."""


def open_exported(path: Path, told: Told) -> GraphModel:
    """A program of `torch.export.save` with one picture tensor as its input."""
    _refuse_code(path)
    try:
        program = torch.export.load(path)
    except LOAD_ERRORS as error:
        raise unopened(path, "a torch.export program", error) from error
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise ModelError(f"{path.name} takes {len(inputs)} inputs; expected one picture tensor.")
    shape = [side if isinstance(side, int) else None for side in inputs[0].shape]
    intake = intake_of(shape, inputs[0].dtype, told.layout)
    module = program.module().requires_grad_(False)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    notes: list[str] = []
    size = told.size(intake.size, None, notes, path.name)
    model = GraphModel(
        lambda x: module(x.to(device)),
        intake,
        path.stem,
        "exported",
        classes=told.classes,
        input_size=size,
        preprocess=told.untouched(path.name)
        if intake.dtype == torch.uint8
        else told.normalisation(None, notes),
        crop=told.crop,
        differentiable=False,
        weights_hash=file_hash([path]),
        parameters_count=sum(parameter.numel() for parameter in module.parameters()),
        assumptions=notes,
    )
    probe = torch.zeros(1, 3, *size, requires_grad=True)
    with torch.enable_grad():
        output, _ = model._run(probe)
    model.differentiable = isinstance(output, Tensor) and output.requires_grad
    return model


def _refuse_code(path: Path) -> None:
    """`torch.export.load` unpickles and loads libraries: let only plain tensors through."""
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path.name} is no torch.export program: it is no archive, or is cut.")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        suspects = [
            name
            for name in names
            if "aotinductor" in name
            or Path(name).name.startswith(("custom_obj", "opaque_obj"))
            or names.count(name) > 1
            or (name.endswith("_config.json") and b'"use_pickle": true' in archive.read(name))
        ]
        for name in names:
            if name.endswith(".pt"):
                try:
                    torch.load(BytesIO(archive.read(name)), weights_only=True)
                except (pickle.UnpicklingError, RuntimeError, EOFError):
                    suspects.append(name)
    if suspects:
        raise ModelError(
            f"{path.name} holds more than tensors ({suspects[0]}): opening it could run any code, "
            "so it is refused.",
            "Export the model again with torch.export.save, without compiled or custom objects.",
        )


def open_onnx(path: Path, told: Told) -> GraphModel:
    """A classifier with one picture tensor as its input, run by onnxruntime on the CPU."""
    try:
        import onnx
        import onnxruntime
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "export") from error
    states = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    failures = tuple(
        kind
        for kind in vars(states).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except (DecodeError, *failures) as error:
        raise unopened(path, "an ONNX model", error) from error
    if len(session.get_inputs()) != 1:
        raise ModelError(
            f"{path.name} takes {len(session.get_inputs())} inputs; expected one picture tensor."
        )
    taken = session.get_inputs()[0]
    if taken.type not in ONNX_TYPES:
        raise ModelError(f"{path.name} takes {taken.type}; expected {', '.join(ONNX_TYPES)}.")
    shape = [side if isinstance(side, int) and side > 0 else None for side in taken.shape]
    intake = intake_of(shape, ONNX_TYPES[taken.type], told.layout)
    outputs = session.get_outputs()
    given = next((output for output in outputs if len(output.shape) == 2), outputs[0])
    metadata = session.get_modelmeta().custom_metadata_map
    classes = told.classes
    if classes is None and "names" in metadata:
        count = given.shape[1] if isinstance(given.shape[1], int) else None
        classes = names_in_order(_literal(metadata, "names"), count)
    notes: list[str] = []
    own = _metadata_preprocess(metadata)
    files = {
        entry.value
        for t in graph.initializer
        for entry in t.external_data
        if entry.key == "location"
    }

    def call(x: Tensor) -> Tensor:
        array = x.detach().cpu().contiguous().numpy()
        try:
            return torch.from_numpy(session.run([given.name], {taken.name: array})[0])
        except failures as error:
            raise ModelError(f"{path.name} cannot be run: {str(error)[:300]}") from error

    return GraphModel(
        call,
        intake,
        path.stem,
        "onnx",
        classes=classes,
        input_size=told.size(intake.size, own.size if own else None, notes, path.name),
        preprocess=told.untouched(path.name)
        if intake.dtype == torch.uint8
        else told.normalisation(own, notes),
        crop=told.crop,
        differentiable=False,
        weights_hash=file_hash([path, *(path.parent / file for file in sorted(files))]),
        parameters_count=sum(math.prod(tensor.dims) for tensor in graph.initializer),
        assumptions=notes,
    )


def _metadata_preprocess(metadata: Mapping[str, str]) -> Preprocess | None:
    """What an ONNX file says of its preprocessing: our own keys, or an ultralytics export.

    ultralytics classifiers divide by 255 and do no more; their side is in `imgsz`.
    """
    values = {key: _literal(metadata, key) for key in ("mean", "std", "scale") if key in metadata}
    if metadata.get("author") == "Ultralytics":
        values = {"mean": 0.0, "std": 1.0, **values}
        if "imgsz" in metadata:
            values["size"] = _literal(metadata, "imgsz")
    if "interpolation" in metadata:
        values["interpolation"] = metadata["interpolation"]
    if not {"mean", "std"} <= values.keys():
        return None
    try:
        return Preprocess.model_validate(values)
    except ValidationError as error:
        raise ModelError(
            f"The metadata of the model say {values}, which is no preprocessing.",
            "Say it in a file: --preprocess FILE.",
        ) from error


def _literal(metadata: Mapping[str, str], key: str) -> Any:
    """The Python or JSON literal under `key`."""
    try:
        return ast.literal_eval(metadata[key])
    except (ValueError, SyntaxError) as error:
        raise ModelError(
            f"The metadata key {key!r} of the model cannot be read: {metadata[key][:80]!r}.",
            "Say it instead: --classes A,B,... or --preprocess FILE.",
        ) from error


def file_hash(paths: Sequence[Path]) -> str:
    """BLAKE2b-128 of the files' bytes, one after the other."""
    hasher = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                hasher.update(block)
    return hasher.hexdigest()


def unopened(path: Path, kind: str, error: BaseException) -> ModelError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:3])[:300] or type(error).__name__
    return ModelError(f"{path.name} cannot be opened as {kind}: {reason}", "Is the file whole?")
