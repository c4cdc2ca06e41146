"""Which classes are taken for which (specs/study.md, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from beholder.core.options import Options
from beholder.core.sections import Figure, Section, Severity, Table, share_text
from beholder.metrics.classification import confusion
from beholder.metrics.intervals import fisher_less, holm, mcnemar

from .accuracy import severity_of
from .base import Evidence, errors_or_why, limited, section, unit_of

MAX_DRAWN = 25


def finding(
    pair: tuple[str, str, int, int] | None,
    lopsided: tuple[str, str, int, int] | None,
    accuracy: Severity,
) -> tuple[Severity, str]:
    """What is mixed up. Severity follows accuracy's and is never `act` by itself.

    Args:
        pair: (A, B, count, images of A): the most frequent pair that stands out, or None.
        lopsided: (A, B, A called B, B called A): two classes taken for each other unequally.
        accuracy: severity of the accuracy section.
    """
    severity: Severity = "look" if accuracy in ("look", "act") else "good"
    if pair is not None:
        a, b, count, of = pair
        return severity, f"{a} is called {b} in {count:,} of {of:,} cases."
    if lopsided is not None:
        a, b, there, back = lopsided
        text = f"{a} is called {b} {there:,} times, {b} is called {a} {back:,} times."
        return severity, f"The errors lean one way: {text}"
    return severity, "The errors show no pattern: no pair is mixed up more often than chance would."


def pair_tests(table: np.ndarray) -> pl.DataFrame:
    """Every ordered pair that occurs, tested against independence of the other errors.

    Among the errors whose true class is not B and whose answer is not A (those cells of the table
    are empty by construction), is B given more often to images of A than to those of other
    classes? Fisher's exact test, Holm over all ordered pairs. With two classes every error of A
    must be B, so no pair can stand out.

    Args:
        table: [C, C] counts, rows true.

    Returns:
        a, b (class indices), count, share_of_true, share_of_errors, p_holm.
    """
    errors = table - np.diag(np.diag(table))
    total, by_true, by_answer = errors.sum(), errors.sum(1), errors.sum(0)
    a, b = np.nonzero(~np.eye(len(table), dtype=bool))
    count = errors[a, b]
    of_a = by_true[a]
    others = total - by_true[a] - by_true[b] - (by_answer[a] - errors[b, a])
    others_b = by_answer[b] - count
    p = fisher_less(of_a - count, of_a, others - others_b, others)
    frame = pl.DataFrame(
        {
            "a": a,
            "b": b,
            "count": count,
            "share_of_true": count / np.maximum(table.sum(1)[a], 1),
            "share_of_errors": count / max(total, 1),
            "p_holm": holm(np.asarray(p)),
        }
    )
    return frame.filter(pl.col("count") > 0).sort(
        "count", "a", "b", descending=[True, False, False]
    )


def asymmetry_tests(table: np.ndarray) -> pl.DataFrame:
    """Is A called B as often as B is called A? Exact binomial, Holm over the pairs that occur.

    Args:
        table: [C, C] counts, rows true.

    Returns:
        a, b (class indices), a_called_b >= b_called_a, p_holm.
    """
    a, b = np.nonzero((table >= table.T) & (table > 0) & ~np.eye(len(table), dtype=bool))
    keep = (table[a, b] > table[b, a]) | (a < b)
    a, b = a[keep], b[keep]
    there, back = table[a, b], table[b, a]
    p = [mcnemar(int(x), int(y)) for x, y in zip(there, back, strict=True)]
    frame = pl.DataFrame(
        {"a": a, "b": b, "a_called_b": there, "b_called_a": back, "p_holm": holm(np.array(p))}
    )
    return frame.sort("p_holm", "a_called_b", descending=[False, True])


def drawn_classes(table: np.ndarray, limit: int = MAX_DRAWN) -> np.ndarray:
    """Class indices to draw: all in order, or the `limit` most confused, alike ones side by side.

    Alike: average linkage on one minus the symmetrised share of each class's images confused.
    """
    if len(table) <= limit:
        return np.arange(len(table))
    errors = table - np.diag(np.diag(table))
    most = np.sort(np.argsort(-(errors.sum(0) + errors.sum(1)), kind="stable")[:limit])
    shares = errors[np.ix_(most, most)] / np.maximum(table.sum(1)[most], 1)[:, None]
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return most[leaves_list(tree)]


def grid(table: np.ndarray, classes: Sequence[str]) -> pl.DataFrame:
    """Cells row (true), column (predicted), value (share of the row), text ('12 (20 %)')."""
    drawn = drawn_classes(table).tolist()
    rows = []
    for i in drawn:
        n = int(table[i].sum())
        for j in drawn:
            share = float(table[i, j] / n) if n else 0.0
            rows.append((classes[i], classes[j], share, f"{table[i, j]:,} ({100 * share:.0f} %)"))
    schema = {"row": pl.String, "column": pl.String, "value": pl.Float64, "text": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def whole_table(table: np.ndarray, classes: Sequence[str]) -> pl.DataFrame:
    """All cells that are not empty: true, predicted, count."""
    i, j = np.nonzero(table)
    named = {
        "true": [classes[x] for x in i.tolist()],
        "predicted": [classes[x] for x in j.tolist()],
    }
    return pl.DataFrame({**named, "count": table[i, j]})


@section("confusion", "Confusion", needs=errors_or_why)
def summarise(evidence: Evidence, options: Options) -> Section:
    """Counts and row shares, the pairs that stand out, and those that lean one way."""
    judged, classes = evidence.judged, evidence.classes
    table = confusion(judged["label"].to_numpy(), judged["predicted"].to_numpy(), len(classes))
    pairs, lopsided = pair_tests(table), asymmetry_tests(table)
    names = pl.Series(list(classes), dtype=pl.String)
    top = pairs.filter(pl.col("p_holm") < 0.05).head(1)
    lean = lopsided.filter(pl.col("p_holm") < 0.05).head(1)
    of = table.sum(1)
    severity, sentence = limited(
        *finding(
            next(((names[a], names[b], n, int(of[a])) for a, b, n, *_ in top.iter_rows()), None),
            next(((names[a], names[b], n, m) for a, b, n, m, _ in lean.iter_rows()), None),
            severity_of(evidence, options),
        ),
        len(judged),
    )
    most, errors = min(len(classes), MAX_DRAWN), int(table.sum() - np.trace(table))
    note = "" if most == len(classes) else f"The {most} most confused of {len(classes)} classes."
    share = share_text(errors / len(judged))
    return Section(
        id="confusion",
        title="Confusion",
        finding=sentence,
        severity=severity,
        n=len(judged),
        unit=unit_of(evidence),
        tables={
            "pairs": Table(
                frame=pairs.select(
                    names.gather(pairs["a"]).alias("true"),
                    names.gather(pairs["b"]).alias("predicted"),
                    "count",
                    "share_of_true",
                    "share_of_errors",
                    "p_holm",
                ),
                units={"share_of_true": "share", "share_of_errors": "share"},
            ),
            "asymmetry": Table(
                frame=lopsided.select(
                    names.gather(lopsided["a"]).alias("a"),
                    names.gather(lopsided["b"]).alias("b"),
                    "a_called_b",
                    "b_called_a",
                    "p_holm",
                )
            ),
            "counts": Table(frame=whole_table(table, classes)),
        },
        figures={
            "counts": Figure(
                kind="grid",
                data=grid(table, classes),
                title="True class against answer",
                x="answer",
                y="true class",
                note=note,
            )
        },
        method=[
            f"{errors:,} errors ({share}) on the judged images of the first split; rows are true "
            "classes, columns answers, each cell holds a count and its share of the row.",
            "A pair is named if its share of the errors is above what independent errors would "
            "give (Fisher's exact test, corrected for all pairs by Holm).",
            "Leaning: A called B against B called A, exact binomial test, corrected likewise.",
        ],
    )
