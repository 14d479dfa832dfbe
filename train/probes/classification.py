"""The linear probe: logistic regression on frozen vectors of labelled texts.

Legend: N texts, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.errors import DataError, UserError
from train.finetune.packages import require
from train.finetune.rows import FORMATS, Row, read_rows, text_of
from train.probes.probe import Probe, Vectors, chosen, shuffled, silent

_SPLITS = ("validation", "dev", "test")  # the first that is there is measured
_HELD_OUT = 5  # of a single file every fifth row
_STRENGTH = 0.1  # inverse of the L2 penalty, on standardized vectors
_MOST_ITERATIONS = 200


def classification_probe(name: str, path: Path, most: int) -> Probe:
    """The accuracy of a linear probe: fitted on train.* of a folder and measured on validation.*, dev.* or test.*, the
    first that is there; of a single file on every fifth row by a hash. Rows are {text, label}.

    At most `most` rows of either are taken. Raises UserError and DataError with the place of the first mistake.
    """
    require("sklearn")
    train, test = _splits(path)
    fitted, held = chosen(train, most, name), chosen(test, most, name)
    labels = [_label(row) for row in (*fitted, *held)]
    texts = [text_of(row, "text") for row in (*fitted, *held)]
    count = len(fitted)
    if len(set(labels[:count])) < 2:
        raise DataError(f"{path}: all rows of the training part have one label: there is nothing to tell apart")
    most_frequent = Counter(labels[:count]).most_common(1)[0][0]

    def measure(vectors_ND: Vectors) -> float:
        return linear_accuracy(vectors_ND[:count], labels[:count], vectors_ND[count:], labels[count:])

    trivial = labels[count:].count(most_frequent) / len(held)
    words = f"{count:,} of {len(train):,} rows to fit, {len(held):,} of {len(test):,} to measure"
    return Probe(name, "accuracy", texts, measure, trivial, words)


def linear_accuracy(fit_ND: Vectors, fit_labels: Sequence[str], test_ND: Vectors, test_labels: Sequence[str]) -> float:
    """The share of test vectors whose label logistic regression finds. Vectors are scaled to mean 0 and deviation 1."""
    from sklearn.linear_model import LogisticRegression

    mean_D, deviation_D = fit_ND.mean(0, dtype=np.float64), fit_ND.std(0, dtype=np.float64) + 1e-6
    model = LogisticRegression(C=_STRENGTH, max_iter=_MOST_ITERATIONS)
    with silent():
        model.fit((fit_ND - mean_D) / deviation_D, fit_labels)
        guessed = model.predict((test_ND - mean_D) / deviation_D)
    return float(np.mean(guessed == np.array(test_labels)))


def _splits(path: Path) -> tuple[list[Row], list[Row]]:
    if not path.is_dir():
        rows = read_rows(str(path))
        if len(rows) < _HELD_OUT:
            raise DataError(f"{path}: {len(rows)} rows: too few to fit and to measure")
        order = shuffled(len(rows), "held out")
        held = sorted(order[: len(rows) // _HELD_OUT])
        return [rows[i] for i in sorted(order[len(held) :])], [rows[i] for i in held]
    train = _file(path, "train")
    test = next((file for split in _SPLITS if (file := _file(path, split))), None)
    if train is None or test is None:
        raise UserError(f"{path}: a folder for the linear probe has train.jsonl and one of {', '.join(_SPLITS)}.jsonl")
    return read_rows(str(train)), read_rows(str(test))


def _file(folder: Path, split: str) -> Path | None:
    return next((file for kind in FORMATS if (file := folder / f"{split}{kind}").is_file()), None)


def _label(row: Row) -> str:
    label = row.fields.get("label")
    if not isinstance(label, (str, int)):
        raise DataError(f"{row.place}: no 'label' that is a text or a whole number")
    return str(label)
