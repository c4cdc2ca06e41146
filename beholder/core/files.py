"""Writing without half-written files, and hashing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

from .errors import StorageError

STORAGE_ERRNOS = {
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk at `path` into `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in STORAGE_ERRNOS:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StorageError(
                f"Cannot write {path.name} in {path.parent}: {reason}.",
                "Free some space or choose another place with --out (or $BEHOLDER_CACHE).",
            ) from error
        raise


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write `path` through a temporary file in the same directory, fsync, rename.

    Raises:
        StorageError: disk full or read-only; `path` is then as it was.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name[:60]}."
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """`write_atomic` of bytes that are already there."""
    write_atomic(path, lambda stream: stream.write(data))


def write_json(path: Path, value: object) -> None:
    """UTF-8 JSON, keys sorted, no NaN, atomically."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def is_writable(directory: Path) -> bool:
    """Whether files can be made in it (it is made, where missing)."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def digest(*parts: bytes | str) -> str:
    """BLAKE2b-128 in hexadecimal over the length-prefixed parts (so no two splits collide)."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def key_of(value: object) -> str:
    """`digest` of canonical JSON: the name of a cache entry."""
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


def cache_dir() -> Path:
    """`$BEHOLDER_CACHE`, or the platform's cache directory."""
    return Path(os.environ.get("BEHOLDER_CACHE") or platformdirs.user_cache_dir("beholder"))
