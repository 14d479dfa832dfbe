"""Metrics: thin calls of well-kept libraries, and how each is shown to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# name in results.json: (in words, factor, unit); what is not named here is shown as it is
_SHOWN = {
    "accuracy": ("accuracy", 100, " %"),
    "macro_f1": ("macro-F1", 100, " %"),
}


def in_words(metrics: Mapping[str, float]) -> str:
    """ "accuracy 81.2 %, macro-F1 81.1 %"."""
    return ", ".join(f"{name(metric)} {value(metric, number)}" for metric, number in metrics.items())


def name(metric: str) -> str:
    """Of a metric of results.json, for a person."""
    return _SHOWN.get(metric, (metric,))[0]


def value(metric: str, number: float) -> str:
    """A value with its unit."""
    if metric not in _SHOWN:
        return f"{number:.4f}"
    _, factor, unit = _SHOWN[metric]
    return f"{factor * number:.{2 if factor == 1 and not unit else 1}f}{unit}"


def classification(true: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """Accuracy, and F1 averaged over the labels that occur, each counting the same (scikit-learn)."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0.0)),
    }
