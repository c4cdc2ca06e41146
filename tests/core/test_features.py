"""The feature pass: the numbers of a plain loop, computed once, and never half kept."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from beholder.core import features as module
from beholder.core.errors import ModelError, StorageError
from beholder.core.features import Features, extract, read_shard, write_shard
from beholder.core.images import TABLE_SCHEMA, Images

SIDE, DIM = 8, 5
LAYOUT = {"pooled": slice(0, 3), "rest": slice(3, DIM)}
WEIGHTS = np.random.default_rng(1).normal(size=(SIDE * SIDE * 3, DIM)).astype(np.float32)


class Folder:
    """Files of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def stat(self, key: str) -> None:
        return None


def numbers(images: np.ndarray) -> np.ndarray:
    """[B, H, W, 3] -> [B, DIM]: a small fixed projection."""
    return images.reshape(len(images), -1).astype(np.float32) / 255 @ WEIGHTS


class Spy:
    """An engine that counts its batches and may stop in the middle."""

    name = "spy"

    def __init__(self, batch: int = 4, stop_after: int | None = None) -> None:
        self.batch, self.stop_after, self.seen = batch, stop_after, 0

    def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            assert batch.shape == (self.batch, SIDE, SIDE, 3)
            if self.stop_after is not None and self.seen >= self.stop_after:
                raise KeyboardInterrupt
            self.seen += 1
            yield numbers(batch)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 8)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """21 pictures: two whole shards of 8, and one of 5."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(21):
        Image.fromarray(picture(number)).save(root / f"{number:02d}.png")
    return folder(root)


def folder(root: Path) -> Images:
    names = sorted(path.name for path in root.iterdir())
    table = pl.DataFrame({"id": names, "key": names, "path": names}).with_columns(
        pl.lit(None, kind).alias(name)
        for name, kind in TABLE_SCHEMA.items()
        if name not in {"id", "key", "path"}
    )
    return Images("planted", (), table, Folder(root), "flat", "unlabelled")


def run(images: Images, engine: Spy, **options) -> Features:
    hashes = [hashlib.blake2b(images.store.read(key)).hexdigest() for key in images.table["key"]]
    settings = {
        "describe": {"weights": "w", "size": [SIDE, SIDE], "crop": "squash"},
        "prepare": lambda image: image,
        "size": (SIDE, SIDE),
        "layout": LAYOUT,
    }
    return extract(lambda: engine, images, hashes, **settings | options)


def shards(own_cache: Path) -> list[Path]:
    return sorted(path for path in own_cache.rglob("*") if path.is_file())


EXPECTED = numbers(np.stack([picture(number) for number in range(21)])).astype(np.float16)
MIRRORED = numbers(np.stack([picture(number)[:, ::-1] for number in range(21)])).astype(np.float16)


def test_features_equal_a_plain_loop(images: Images) -> None:
    found = run(images, Spy())
    assert len(found) == 21
    np.testing.assert_allclose(found.take(), EXPECTED, atol=0.01)


def test_the_mirror_view_is_the_features_of_the_flipped_image(images: Images) -> None:
    np.testing.assert_allclose(run(images, Spy()).take(view="mirror"), MIRRORED, atol=0.01)


def test_rows_and_columns_are_taken_in_the_order_asked(images: Images) -> None:
    found = run(images, Spy())
    rows = np.array([20, 0, 9, 9, 3])
    taken = found.take(rows, columns=LAYOUT["rest"])
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, found.take()[rows, 3:])
    assert found.take(np.array([], int)).shape == (0, DIM)


def test_an_array_in_memory_is_taken_like_shards() -> None:
    array = np.arange(42, dtype=np.float32).reshape(21, 2)
    np.testing.assert_array_equal(Features.of(array).take(np.array([17, 2])), array[[17, 2]])


def test_the_last_batch_is_padded_and_cut(images: Images) -> None:
    engine = Spy(batch=3)  # 8 = 3 + 3 + 2, 5 = 3 + 2, for two views
    np.testing.assert_allclose(run(images, engine).take(), EXPECTED, atol=0.01)
    assert engine.seen == 2 * (3 + 3 + 2)


def test_a_second_pass_makes_no_engine_and_gives_the_same_bits(images: Images) -> None:
    first = run(images, Spy())

    def never() -> Spy:
        raise AssertionError("an engine was made")

    hashes = [hashlib.blake2b(images.store.read(key)).hexdigest() for key in images.table["key"]]
    again = extract(
        never,
        images,
        hashes,
        describe={"weights": "w", "size": [SIDE, SIDE], "crop": "squash"},
        prepare=lambda image: image,
        size=(SIDE, SIDE),
        layout=LAYOUT,
    )
    np.testing.assert_array_equal(again.take(), first.take())


def test_a_view_that_is_missing_is_added_without_the_other(images: Images) -> None:
    run(images, Spy(), views=("image",))
    engine = Spy()
    run(images, engine, views=("image", "mirror"))
    assert engine.seen == 2 + 2 + 2


def test_every_pass_is_counted_once(images: Images) -> None:
    counts: list[int] = []
    run(images, Spy(), views=("image",))
    run(images, Spy(), progress=counts.append)
    assert sum(counts) == 42


@pytest.mark.parametrize("harm", ["torn", "cut", "flipped", "longer", "empty"])
def test_a_damaged_shard_is_computed_again(images: Images, own_cache: Path, harm: str) -> None:
    run(images, Spy(), views=("image",))
    path = shards(own_cache)[0]
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[7] ^= 1
    changed = {
        "torn": data[: len(data) // 2],
        "cut": data[:-1],
        "flipped": data,
        "longer": data + b"\0",
        "empty": b"",
    }
    path.write_bytes(bytes(changed[harm]))
    engine = Spy()
    found = run(images, engine, views=("image",))
    assert engine.seen == 2
    np.testing.assert_allclose(found.take(), EXPECTED, atol=0.01)


def test_a_shard_goes_through_the_disk_bit_by_bit(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float32):
        data = np.random.default_rng(0).normal(size=(7, 3)).astype(dtype)
        path = tmp_path / f"{data.dtype.name}"
        write_shard(path, data)
        np.testing.assert_array_equal(read_shard(path, 7, 3, data.dtype), data)
        assert read_shard(path, 7, 2, data.dtype) is None
        assert read_shard(tmp_path / "none", 7, 3, data.dtype) is None


def test_logits_are_kept_in_single_precision(images: Images) -> None:
    found = run(images, Spy(), dtype=np.dtype(np.float32))
    again = run(images, Spy(stop_after=0), dtype=np.dtype(np.float32))
    exact = numbers(np.stack([picture(number) for number in range(21)]))
    np.testing.assert_allclose(found.take(), exact, atol=1e-5)
    np.testing.assert_array_equal(again.take(), found.take())


def test_a_full_disk_is_a_storage_error_without_half_files(
    images: Images, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        run(images, Spy())
    assert shards(own_cache) == []


def test_a_cache_that_may_not_be_written_is_a_storage_error(
    images: Images, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(module.filelock.FileLock, "acquire", refuse)
    with pytest.raises(StorageError, match="Read-only"):
        run(images, Spy())
    assert shards(own_cache) == []


def test_a_full_cache_that_may_not_be_written_is_still_read(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(images, Spy())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "utime", refuse)
    assert len(run(images, Spy(stop_after=0))) == 21


def test_an_image_that_vanishes_is_gone_and_its_shard_not_kept(
    images: Images, own_cache: Path
) -> None:
    store = images.store
    hashes = [hashlib.blake2b(store.read(key)).hexdigest() for key in images.table["key"]]
    (store.root / "03.png").unlink()
    found = extract(
        Spy,
        images,
        hashes,
        describe={"weights": "w"},
        prepare=lambda image: image,
        size=(SIDE, SIDE),
        layout=LAYOUT,
        views=("image",),
    )
    assert list(found.gone) == ["03.png"]
    assert found.gone["03.png"].startswith("missing_file")
    assert len(shards(own_cache)) == 2
    np.testing.assert_allclose(found.take(np.array([2, 4])), EXPECTED[[2, 4]], atol=0.01)


def test_a_number_that_is_none_is_an_error_with_the_image_named(
    images: Images, own_cache: Path
) -> None:
    class Broken(Spy):
        def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for found in super().run(batches):
                found[np.abs(found[:, 0] - numbers(picture(5)[None])[0, 0]) < 1e-4] = np.nan
                yield found

    with pytest.raises(ModelError, match=r"05\.png"):
        run(images, Broken(), views=("image",))
    assert shards(own_cache) == []


def test_what_float16_cannot_hold_is_clipped(images: Images) -> None:
    class Huge(Spy):
        def run(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            return (np.full_like(found, -1e9) for found in super().run(batches))

    assert (run(images, Huge()).take() == np.finfo(np.float16).min).all()


@pytest.mark.parametrize(
    "describe",
    [
        {"weights": "other", "size": [SIDE, SIDE], "crop": "squash"},
        {"weights": "w", "size": [16, 16], "crop": "squash"},
        {"weights": "w", "size": [SIDE, SIDE], "crop": "center"},
    ],
)
def test_other_weights_sizes_and_crops_have_other_shards(
    images: Images, own_cache: Path, describe: dict
) -> None:
    run(images, Spy(), views=("image",))
    engine = Spy()
    run(images, engine, views=("image",), describe=describe)
    assert engine.seen == 6
    assert len(shards(own_cache)) == 6


def test_another_engine_or_batch_shares_the_shards(images: Images, own_cache: Path) -> None:
    run(images, Spy(batch=4))
    run(images, Spy(batch=7, stop_after=0))
    assert len(shards(own_cache)) == 6


def test_a_changed_image_changes_its_shard_only(images: Images) -> None:
    run(images, Spy(), views=("image",))
    Image.fromarray(picture(99)).save(images.store.root / "20.png")
    engine = Spy()
    found = run(images, engine, views=("image",))
    assert engine.seen == 2
    np.testing.assert_allclose(found.take(np.array([20])), numbers(picture(99)[None]), atol=0.01)


def test_an_interrupted_pass_goes_on_with_the_rest_only(images: Images, own_cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(images, Spy(stop_after=5))  # the first shard takes 4 batches, for both views
    assert len(shards(own_cache)) == 2
    engine = Spy()
    np.testing.assert_allclose(run(images, engine).take(), EXPECTED, atol=0.01)
    assert engine.seen == 4 + 4


def test_the_shared_cache_is_kept_below_its_limit(
    images: Images, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "prune", lambda: [path.unlink() for path in shards(own_cache)[:4]])
    found = run(images, Spy())
    assert len(shards(own_cache)) == 2
    np.testing.assert_allclose(found.take(), EXPECTED, atol=0.01)


CHILD = """
import hashlib, resource, sys
import numpy as np
import test_features as t
t.module.SHARD = int(sys.argv[2])
images = t.folder(t.Path(sys.argv[1]))
dim = int(sys.argv[3])

class Wide(t.Spy):
    def run(self, batches):
        return (np.resize(found, (len(found), dim)) for found in super().run(batches))

found = t.run(images, Wide(), layout={"pooled": slice(0, dim)}, views=("image",))
print(hashlib.blake2b(found.take(np.arange(16)).tobytes()).hexdigest())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def child(root: Path, shard: int, dim: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(shard), str(dim)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )


def test_two_processes_on_one_cache_agree(images: Images, own_cache: Path) -> None:
    both = [child(images.store.root, 8, DIM) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0].split()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    assert [path for path in shards(own_cache) if path.suffix != ".float16"] == []
    np.testing.assert_allclose(
        run(images, Spy(stop_after=0), views=("image",)).take(), EXPECTED, atol=0.01
    )


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = {}
    for count in (256, 1024):
        root = tmp_path / str(count)
        root.mkdir()
        content = Image.fromarray(picture(0))
        content.save(root / "0000.png")
        data = (root / "0000.png").read_bytes()
        for number in range(1, count):
            (root / f"{number:04d}.png").write_bytes(data)
        process = child(root, 64, 3000)
        peaks[count] = int(process.communicate(timeout=60)[0].split()[1])
    assert peaks[1024] < 1.1 * peaks[256]
