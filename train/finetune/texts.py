"""The texts of a row, one or two: their columns, their tokens, and what was cut or left out of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from train.finetune.rows import Row, chosen_column, text_of
from train.finetune.task import Feature


class Texts(NamedTuple):
    """The columns of the texts; `pair` is None where a row has one."""

    text: str
    pair: str | None

    def by_input(self) -> dict[str, str]:
        """{name of an input of `predict`: column}, so that files like those of training can be given."""
        return {"text": self.text} | ({"text_pair": self.pair} if self.pair else {})


# The usual names: pairs first, because a row that has both columns of one is a pair.
_PAIRS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("a", "b")),
    *(("question1", "question2"), ("question", "sentence"), ("query", "title")),
)
_SINGLE = ("text", "sentence", "content", "review", "query", "title")


def text_columns(rows: Sequence[Row], text: str | None, pair: str | None) -> Texts:
    """The columns of the texts: as given, else by the usual names. Raises UserError where none is found."""
    there = rows[0].fields.keys()
    if not text and not pair:
        for first, second in _PAIRS:
            if first in there and second in there:
                return Texts(first, second)
    found = chosen_column(rows, text, _SINGLE, "text", "--text")
    return Texts(found, chosen_column(rows, pair, (), "second text", "--text-pair") if pair else None)


def texts_of(row: Row, columns: Texts) -> tuple[str, ...]:
    """One or two. Raises DataError with the row's place."""
    return tuple(text_of(row, column) for column in columns if column is not None)


def encoded(
    tokenizer: Any, texts: Sequence[tuple[str, ...]], length: int, cut: dict[str, int], split: str
) -> list[Feature]:
    """Token ids of each row, cut at `length`; `cut[split]` becomes the number of rows that are longer."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    whole = tokenizer(*columns, truncation=False, return_attention_mask=False, verbose=False)
    cut[split] = sum(len(ids) > length for ids in whole["input_ids"])
    short = tokenizer(*columns, truncation="longest_first", max_length=length) if cut[split] else tokenizer(*columns)
    return [dict(zip(short.keys(), values, strict=True)) for values in zip(*short.values(), strict=True)]


def cut_in_words(cut: Mapping[str, int], rows: Mapping[str, Sequence[Row]], length: int) -> list[str]:
    """A sentence where a split has rows that are longer than the model is given."""
    parts = [f"{number:,} of {len(rows[split]):,} in {split}" for split, number in cut.items() if number]
    return [f"Cut at {length} tokens: {', '.join(parts)} (--max-length)."] if parts else []


def left_out_in_words(left_out: Mapping[str, int]) -> list[str]:
    """A sentence where --repair left rows out."""
    parts = [f"{number:,} of {split}" for split, number in left_out.items() if number]
    return [f"Left out by --repair: {', '.join(parts)}."] if parts else []
