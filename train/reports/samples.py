"""What the model predicted of held-out documents (RUN/samples.jsonl), as HTML. train/monitor/samples.py writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from train.monitor.samples import UNSEEN, Sample, spaces

_LISTS = ("truth", "shown", "predicted")
_CONTINUES = "##"


def read_samples(path: Path) -> list[tuple[int, list[dict[str, Sample]]]]:
    """(step, the samples of each document by head) of every validation; what is not of this form is left out."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
            documents = [dict(_samples(document["heads"])) for document in record["documents"]]
            found.append((int(record["step"]), [heads for heads in documents if heads]))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def _samples(heads: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Sample]]:
    for head, lists in heads.items():
        sample = Sample(*(list(lists[name]) for name in _LISTS))
        texts = [*sample.truth, *sample.shown, *(guess for guess in sample.predicted if guess is not None)]
        same = len(sample.truth) == len(sample.shown) == len(sample.predicted)
        if sample.truth and same and all(isinstance(text, str) and text for text in texts):
            yield str(head), sample


def as_html(sample: Sample) -> str:
    """The document, its targets marked: right, or what was guessed before what is true; pale is what was not seen."""
    spaced = spaces(sample.truth)
    return "".join(" " * spaced[i] + _token(sample, i) for i in range(len(sample.truth)))


def _token(sample: Sample, i: int) -> str:
    guess, true = sample.predicted[i], sample.truth[i]
    text = _text(true, goes_on=i > 0)
    if guess is None:
        return f"<i>{text}</i>" if sample.shown[i] == UNSEEN else text
    if guess == true:
        return f"<ins>{text}</ins>"
    return f"<del>{_text(guess, goes_on=i > 0)}</del><b>{text}</b>"


def _text(token: str, *, goes_on: bool) -> str:
    glued = goes_on and len(token) > len(_CONTINUES) and token.startswith(_CONTINUES)
    return escape(token.removeprefix(_CONTINUES) if glued else token)
