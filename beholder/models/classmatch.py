"""Which output of a given model stands for which class of the data (specs/study.md, section 3).

Names are matched, never positions, unless both sides only have numbers or the user asks for it.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from beholder.core.errors import ArgumentError, ModelError

How = Literal["exact", "normalised", "wordnet", "map", "position"]
RULES: tuple[How, ...] = ("exact", "normalised", "wordnet", "map", "position")
WORDNET_ID = re.compile(r"n\d{8}")
MAP_HINT = "Say which is which: --class-map map.csv with the columns data_class,model_class."


@dataclass(frozen=True)
class Match:
    """How a model's outputs become answers about the classes of the data.

    Attributes:
        classes: of the data, in order.
        columns: for each of `classes` the model outputs that stand for it; none = missing.
        how: the loosest rule that was needed.
        missing: classes of the data that the model does not know.
        extra: classes of the model that the data does not have.
        extra_columns: the outputs of `extra`.
    """

    classes: tuple[str, ...]
    columns: tuple[tuple[int, ...], ...]
    how: How
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    extra_columns: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that `apply` gives: the classes of the data, then `extra`."""
        return self.classes + self.extra


def apply(logits: Tensor, match: Match) -> Tensor:
    """Logits of the model over the classes of the data, then over the extra ones.

    Outputs that share a class are joined by log-sum-exp, so probabilities add up. A missing class
    gets -inf (probability 0). Extra classes stay in the soft max: an image may be predicted to be
    something that the data does not have.

    Args:
        logits: [N, M], M outputs of the model.

    Returns:
        [N, C + E] in the order of `match.names`; differentiable.
    """
    wanted = [*match.columns, *((column,) for column in match.extra_columns)]
    nothing = logits.shape[1]
    longest = max(map(len, wanted))
    index = [list(columns) + [nothing] * (longest - len(columns)) for columns in wanted]
    padded = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
    return padded[:, torch.tensor(index, device=logits.device)].logsumexp(2)


def match_classes(
    data_classes: Sequence[str],
    model_classes: Sequence[str],
    *,
    class_map: Path | None = None,
    by_position: bool = False,
) -> Match:
    """Find each class of the data among those of the model.

    Rules in order: the same number, where both sides are exactly 0..C-1; lines of `class_map`;
    equal names; names equal but for case, Unicode form and `_`, `-`, space; the same WordNet
    meaning (an id such as n02123045, or a name of an ImageNet class). `by_position` replaces all.

    Args:
        model_classes: names of the model's outputs, in order; `numbered(M)` where it has none.
        class_map: CSV with the columns data_class, model_class. Several lines for one data class
            join those outputs.
        by_position: output i is class i.

    Raises:
        ModelError: nothing matches, a name fits several ways, numbers of classes differ under
            `by_position`, or the map does not fit.
        ArgumentError: both `class_map` and `by_position`.
    """
    data, model = tuple(data_classes), tuple(model_classes)
    if class_map and by_position:
        raise ArgumentError("--class-map and --by-position exclude each other.", "Leave one out.")
    if by_position:
        if len(data) != len(model):
            raise ModelError(
                f"--by-position needs as many classes as outputs: the data has {len(data)}, "
                f"the model {len(model)}.",
                MAP_HINT,
            )
        return _match(data, model, [(i,) for i in range(len(data))], {"position"})
    _no_twins(model)
    numbers = _are_positions(data, len(model)) and _are_positions(model, len(data))
    if numbers and not class_map and set(data) != set(model):
        order = {int(name): i for i, name in enumerate(model)}
        return _match(data, model, [(order[int(name)],) for name in data], {"position"})
    found: dict[str, tuple[int, ...]] = {}
    rules: set[How] = set()
    if class_map:
        found = _mapped(read_class_map(class_map), data, model)
        rules.add("map")
    _find(found, rules, "exact", data, model, lambda name: {name})
    _find(found, rules, "normalised", data, model, lambda name: {normalised(name)})
    _find(found, rules, "wordnet", data, model, _meanings([*data, *model]))
    if not found:
        raise ModelError(
            f"No class of the data is known to the model: the data has {_some(data)}; "
            f"the model has {_some(model)}.",
            f"{MAP_HINT} Or, if the order is the same: --by-position. "
            "Or name the model's outputs: --classes A,B,...",
        )
    return _match(data, model, [found.get(name, ()) for name in data], rules)


def numbered(outputs: int) -> tuple[str, ...]:
    """Names for the outputs of a model that has none: '0', '1', ..."""
    return tuple(str(i) for i in range(outputs))


def normalised(name: str) -> str:
    """Without case and Unicode form; `_`, `-` and runs of spaces are one space."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return re.sub(r"[\s_-]+", " ", folded).strip()


def readable(name: str) -> str:
    """A WordNet id of an ImageNet class with its first name, 'n02123045 (tabby)'; else `name`."""
    lemmas = _lemmas().get(name)
    return f"{name} ({lemmas[0]})" if lemmas else name


def read_class_map(path: Path) -> list[tuple[str, str]]:
    """Lines (data class, model class) of a CSV with those two columns.

    Raises:
        ModelError: no such file, not a text in UTF-8, or a column is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"Cannot read the class map {path}: {error}.", MAP_HINT) from error
    header = text.split("\n", 1)[0]
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    lines = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    if not lines or not {"data_class", "model_class"} <= lines[0].keys():
        raise ModelError(f"{path} has no columns data_class and model_class.", MAP_HINT)
    return [((r["data_class"] or "").strip(), (r["model_class"] or "").strip()) for r in lines]


def _match(
    data: tuple[str, ...], model: tuple[str, ...], columns: list[tuple[int, ...]], rules: set[How]
) -> Match:
    used = {column for group in columns for column in group}
    free = tuple(column for column in range(len(model)) if column not in used)
    return Match(
        classes=data,
        columns=tuple(columns),
        how=max(rules, key=RULES.index),
        missing=tuple(name for name, group in zip(data, columns, strict=True) if not group),
        extra=tuple(model[column] for column in free),
        extra_columns=free,
    )


def _find(
    found: dict[str, tuple[int, ...]],
    rules: set[How],
    rule: How,
    data: tuple[str, ...],
    model: tuple[str, ...],
    keys: Callable[[str], set[str]],
) -> None:
    """Add to `found` the classes that share a key with one output that is still free."""
    taken = {column for group in found.values() for column in group}
    by_key: dict[str, set[int]] = defaultdict(set)
    for column, name in enumerate(model):
        if column not in taken:
            for key in keys(name):
                by_key[key].add(column)
    claims: dict[int, str] = {}
    for name in data:
        if name in found:
            continue
        columns = sorted(set().union(*(by_key[key] for key in keys(name) if key in by_key)))
        if len(columns) > 1:
            names = [model[column] for column in columns]
            raise ModelError(f"{name!r} could be any of {_some(names)} of the model.", MAP_HINT)
        if columns:
            other = claims.setdefault(columns[0], name)
            if other != name:
                raise ModelError(
                    f"{other!r} and {name!r} both look like {model[columns[0]]!r} of the model.",
                    MAP_HINT,
                )
    if claims:
        found.update({name: (column,) for column, name in claims.items()})
        rules.add(rule)


def _mapped(
    lines: list[tuple[str, str]], data: tuple[str, ...], model: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Data class -> outputs, as the map says."""
    for side, known, names in (
        ("data", data, [line[0] for line in lines]),
        ("model", model, [line[1] for line in lines]),
    ):
        if unknown := sorted(set(names) - set(known)):
            raise ModelError(
                f"The class map names {_some(unknown)}, but the {side} has {_some(known)}.",
                "Names must be written exactly as they are there.",
            )
    owner: dict[str, str] = {}
    for mine, theirs in lines:
        if owner.setdefault(theirs, mine) != mine:
            raise ModelError(
                f"The class map gives {theirs!r} of the model to both {owner[theirs]!r} and "
                f"{mine!r}.",
                "One output can stand for one class only.",
            )
    order = {name: column for column, name in enumerate(model)}
    return {
        name: tuple(sorted({order[theirs] for mine, theirs in lines if mine == name}))
        for name in dict.fromkeys(mine for mine, _ in lines)
    }


def _no_twins(model: tuple[str, ...]) -> None:
    seen: set[str] = set()
    twins = [name for name in model if name in seen or seen.add(name)]
    if twins:
        raise ModelError(
            f"The model has several outputs named {twins[0]!r}.",
            "Give every output its own name: --classes A,B,..., or use --by-position.",
        )


def _are_positions(names: tuple[str, ...], count: int) -> bool:
    """Whether the names are the integers 0..count-1, in any order and spelling ('07')."""
    return all(name.isdecimal() for name in names) and {int(n) for n in names} == set(range(count))


@cache
def _lemmas() -> dict[str, list[str]]:
    """WordNet id -> names of the 1,000 ImageNet classes, the usual one first."""
    info = ImageNetInfo("imagenet-1k")
    return {id: info.label_name_to_description(id).split(", ") for id in info.label_names()}


def _meanings(names: Iterable[str]) -> Callable[[str], set[str]]:
    """Name -> WordNet ids that it may mean.

    A usual name of one ImageNet class means that class, even if it is a rare name of another; ids
    stand for themselves, also outside ImageNet-1k.
    """
    usual: dict[str, set[str]] = defaultdict(set)
    any_name: dict[str, set[str]] = defaultdict(set)
    for id, lemmas in _lemmas().items():
        usual[normalised(lemmas[0])].add(id)
        for lemma in lemmas:
            any_name[normalised(lemma)].add(id)

    def meaning(name: str) -> set[str]:
        if WORDNET_ID.fullmatch(name):
            return {name}
        plain = normalised(name)
        return usual.get(plain) or any_name.get(plain, set())

    return {name: meaning(name) for name in names}.__getitem__


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(readable(name) for name in names[:3])
    return shown + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
