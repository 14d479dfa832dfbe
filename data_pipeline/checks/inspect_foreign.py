"""A look into a WebDataset without our manifest: its statistics, and its first samples as text or ids.

Legend: T elements of an array, D documents of a block of ours, D1 = D + 1.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.checks.foreign import JSON, NPY, Totals, kind_sentence, read_array, sample_name
from data_pipeline.checks.inspect import TOKENS_SHOWN, words_line
from data_pipeline.checks.tars import walk
from data_pipeline.errors import DataError
from data_pipeline.report import counted
from data_pipeline.tokenizer import PREFIX

_TEXTS = (JSON, ".txt")
_CHARACTERS_SHOWN = 300  # of a text

Array = npt.NDArray[Any]
Sample = dict[str, bytes | int]  # content by kind; the size where it was not read


def describe_shards(total: Totals) -> Iterator[str]:
    """The data set in sentences."""
    yield f"A WebDataset without a manifest: {total}."
    yield from (f"Kind {kind_sentence(name, kind)}." for name, kind in sorted(total.kinds.items()))
    if total.problems:
        yield f"{counted(total.problems, 'problem')} in it: python -m data_pipeline verify names them."


def samples(paths: Iterable[Path], vocabulary: list[str] | None) -> Iterator[str]:
    """The samples one by one, those of ours document by document; arrays as pieces of `vocabulary`, else as ids.

    At most TOKENS_SHOWN of an array are shown. Damage ends a shard, and is for `verify` to name. Memory: one sample.
    """
    for path in paths:
        for key, sample in _samples(path):
            block = _block(sample)
            yield from _documents(*block, vocabulary) if block else [_sample_text(key, sample, vocabulary)]


def _samples(path: Path) -> Iterator[tuple[str, Sample]]:
    key: str | None = None
    sample: Sample = {}
    for member in walk(path, lambda name: name.lower().endswith((NPY, *_TEXTS)), lambda line: None):
        named = sample_name(member.name)
        if named is None:
            continue
        if named[0] != key:
            if key is not None:
                yield key, sample
            key, sample = named[0], {}
        sample[named[1]] = member.size if member.content is None else member.content
    if key is not None:
        yield key, sample


def _block(sample: Sample) -> tuple[Array, Array, Array] | None:
    """Ids, document bounds and packed word starts of a block of ours; None when the sample is no such block."""
    contents = [sample.get(kind) for kind in ("ids.npy", "offsets.npy", "words.npy")]
    try:
        ids_T, offsets_D1, bits = (read_array(content) for content in contents if isinstance(content, bytes))
    except (DataError, ValueError):  # ValueError: not all three are there
        return None
    ordered = offsets_D1.size > 1 and (np.diff(offsets_D1.astype(np.int64)) >= 0).all()
    return (ids_T, offsets_D1, bits) if ordered and bits.dtype == np.uint8 and bits.size * 8 >= ids_T.size else None


def _documents(ids_T: Array, offsets_D1: Array, bits: Array, vocabulary: list[str] | None) -> Iterator[str]:
    starts_T = np.unpackbits(bits, count=ids_T.size, bitorder="little").view(np.bool_)
    for start, end in zip(offsets_D1[:-1].tolist(), offsets_D1[1:].tolist(), strict=True):
        yield _tokens(ids_T[start:end], vocabulary, starts_T[start:end])


def _sample_text(key: str, sample: Sample, vocabulary: list[str] | None) -> str:
    return "\n".join([f"sample {key!r}", *(_member_text(kind, sample[kind], vocabulary) for kind in sorted(sample))])


def _member_text(kind: str, content: bytes | int, vocabulary: list[str] | None) -> str:
    if isinstance(content, int):
        return f".{kind}: {content:,} bytes"
    if not f".{kind}".endswith(NPY):
        text = content[: 4 * _CHARACTERS_SHOWN].decode("utf-8", "replace")[:_CHARACTERS_SHOWN]
        return f".{kind}: {''.join(c if c.isprintable() else ' ' for c in text)}"
    try:
        return f".{kind}: {_tokens(read_array(content), vocabulary, None)}"
    except DataError as error:
        return f".{kind}: {error}"


def _tokens(ids_T: Array, vocabulary: list[str] | None, starts_T: npt.NDArray[np.bool_] | None) -> str:
    """The first TOKENS_SHOWN ids: words apart and pieces marked, where the vocabulary is known."""
    shown = [int(number) for number in ids_T[:TOKENS_SHOWN]]
    if vocabulary is None:
        text = " ".join(map(str, shown))
    else:
        tokens = [vocabulary[number] if 0 <= number < len(vocabulary) else f"<{number}>" for number in shown]
        starts = [not token.startswith(PREFIX) for token in tokens] if starts_T is None else starts_T.tolist()
        text = words_line(tokens, starts[: len(tokens)])
    rest = ids_T.size - len(shown)
    return f"{text} ... ({counted(rest, 'more token')})" if rest > 0 else text
