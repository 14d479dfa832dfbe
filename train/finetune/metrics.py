"""Metrics: thin calls of well-kept libraries, and how each is shown to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

OF_TYPE = "f1_of_"  # the F1 of a single type of entities
# name in results.json: (in words, factor, unit); what is not named here is shown as it is
_SHOWN = {
    "accuracy": ("accuracy", 100, " %"),
    "macro_f1": ("macro-F1", 100, " %"),
    "matthews": ("Matthews' correlation", 1, ""),
    "entity_f1": ("entity F1", 100, " %"),
    "entity_precision": ("entity precision", 100, " %"),
    "entity_recall": ("entity recall", 100, " %"),
    "spearman": ("Spearman", 1, ""),
    "pearson": ("Pearson", 1, ""),
    "exact_match": ("exact match", 1, " %"),
    "f1": ("F1", 1, " %"),
    "has_answer_f1": ("F1 where there is an answer", 1, " %"),
    "no_answer_accuracy": ("right where there is none", 1, " %"),
    "bleu": ("BLEU", 1, ""),
    "bleu_lowercase": ("BLEU in lower case", 1, ""),
    "chrf": ("chrF", 1, ""),
    "log_likelihood": ("log-likelihood of a token", 1, ""),
}


def in_words(metrics: Mapping[str, float]) -> str:
    """ "accuracy 81.2 %, macro-F1 81.1 %": without those of single types."""
    return ", ".join(f"{name(metric)} {value(metric, number)}" for metric, number in metrics.items() if shown(metric))


def shown(metric: str) -> bool:
    """F1 of single types of entities stands in results.json alone."""
    return not metric.startswith(OF_TYPE)


def name(metric: str) -> str:
    """Of a metric of results.json, for a person."""
    return _SHOWN.get(metric, (metric,))[0]


def value(metric: str, number: float) -> str:
    """A value with its unit."""
    if metric not in _SHOWN:
        return f"{number:.4f}"
    _, factor, unit = _SHOWN[metric]
    return f"{factor * number:.{1 if factor == 100 or unit else 3}f}{unit}"


def classification(true: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Accuracy, F1 averaged over the labels that occur, each counting the same, and Matthews' correlation, which is 0
    for a guess that knows only how often each label occurs (scikit-learn)."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0.0)),
        "matthews": float(matthews_corrcoef(true, predicted)),
    }


def correlation(true: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Spearman's and Pearson's (scipy); 0 where all predictions are one number, which orders nothing."""
    from scipy.stats import pearsonr, spearmanr

    if len(set(predicted)) < 2 or len(set(true)) < 2:
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(spearmanr(true, predicted).statistic),
        "pearson": float(pearsonr(true, predicted).statistic),
    }


Tags = Sequence[Sequence[str]]  # of the words of each sentence: IOB2


def entities(true: Tags, predicted: Tags) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Precision, recall and F1 of whole entities (seqeval, strict IOB2), and the same of each type.

    An entity counts where its type and both its ends are right; a predicted I- without its B- is none.
    """
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    if all(tag == "O" for tags in (*true, *predicted) for tag in tags):
        return {"entity_f1": 0.0, "entity_precision": 0.0, "entity_recall": 0.0}, {}
    report = classification_report(true, predicted, mode="strict", scheme=IOB2, zero_division=0, output_dict=True)
    rows = {
        kind: {name.removesuffix("-score"): float(number) for name, number in row.items()}
        for kind, row in report.items()
    }
    whole = rows["micro avg"]
    found = {"entity_f1": whole["f1"], "entity_precision": whole["precision"], "entity_recall": whole["recall"]}
    return found, {kind: row for kind, row in rows.items() if not kind.endswith(" avg")}
