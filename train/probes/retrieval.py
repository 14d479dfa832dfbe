"""Retrieval with frozen vectors: every document ranked by its cosine with the query, measured by nDCG at 10.

Folders are laid out as those of BEIR (Thakur et al. 2021): corpus.jsonl {_id, title, text}, queries.jsonl {_id, text},
qrels/SPLIT.tsv (query-id, corpus-id, score; a header).

Legend: N texts, D width, Q queries, C documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train.errors import DataError, UserError
from train.finetune.rows import Row, read_rows, text_of
from train.finetune.text_files import read_lines
from train.probes.probe import Probe, Vectors, shuffled, unit

DEPTH = 10
_SPLITS = ("validation", "dev", "test", "train")  # the first whose qrels are there
Relevance = Mapping[str, Mapping[str, int]]  # gain by query and document; what is not there has none


def retrieval_probe(name: str, folder: Path, most: int) -> Probe:
    """Mean nDCG at 10 over the queries that have a relevant document.

    Of more than `most` documents all that are relevant to the queries taken are kept, and others in the order of a
    hash; where the relevant ones alone are more, fewer queries are taken. Raises UserError and DataError with the place
    of the first mistake.
    """
    corpus = {_id(row): row for row in read_rows(str(_part(folder, "corpus")))}
    queries = {_id(row): row for row in read_rows(str(_part(folder, "queries")))}
    judged = _relevance(folder, corpus, queries)
    taken = _queries(judged, most, name)
    relevant = {document for query in taken for document in judged[query]}
    ids = _documents(list(corpus), relevant, most, name)
    texts = [_document(corpus[document]) for document in ids] + [text_of(queries[query], "text") for query in taken]
    number = {document: place for place, document in enumerate(ids)}
    gains = [{number[document]: gain for document, gain in judged[query].items()} for query in taken]

    def measure(vectors_ND: Vectors) -> float:
        unit_ND = unit(vectors_ND)
        return mean_ndcg(unit_ND[len(ids) :] @ unit_ND[: len(ids)].T, gains)

    words = f"{len(taken):,} of {len(judged):,} queries over {len(ids):,} of {len(corpus):,} documents"
    return Probe(name, "ndcg_at_10", texts, measure, words=words)


def mean_ndcg(scores_QC: npt.NDArray[np.float64], gains_Q: Sequence[Mapping[int, int]], depth: int = DEPTH) -> float:
    """nDCG as trec_eval and BEIR have it: gain / log2(rank + 1) over the first `depth` documents by score, divided by
    that of the best order; of equal scores the earlier document comes first. `gains_Q` are gains by document."""
    discount = 1 / np.log2(np.arange(2, depth + 2))
    values = []
    for scores_C, gains in zip(scores_QC, gains_Q, strict=True):
        first = np.argsort(-scores_C, kind="stable")[:depth]
        found = np.array([gains.get(int(document), 0) for document in first])
        best = np.array(sorted(gains.values(), reverse=True)[:depth])
        values.append(float(found @ discount[: len(found)]) / float(best @ discount[: len(best)]))
    return math.fsum(values) / len(values)


def _part(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    for ending in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
        if (file := folder / f"{name}{ending}").is_file():
            return file
    raise UserError(f"{folder}: no {name}.jsonl: a folder for retrieval has corpus.jsonl, queries.jsonl and qrels/")


def _id(row: Row) -> str:
    value = row.fields.get("_id")
    if not isinstance(value, (str, int)):
        raise DataError(f"{row.place}: no '_id' that is a text or a whole number")
    return str(value)


def _document(row: Row) -> str:
    title = row.fields.get("title")
    text = text_of(row, "text")
    return f"{title} {text}" if isinstance(title, str) and title else text


def _relevance(folder: Path, corpus: Mapping[str, Row], queries: Mapping[str, Row]) -> Relevance:
    """Positive judgements alone. Raises DataError for what names no document or query, and where there is none."""
    files = [folder / "qrels" / f"{split}.tsv" for split in _SPLITS]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise UserError(f"{folder}: no qrels/{_SPLITS[0]}.tsv, nor of {', '.join(_SPLITS[1:])}")
    judged: dict[str, dict[str, int]] = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if not line or (line_number == 1 and len(cells) == 3 and not cells[2].lstrip("-").isdecimal()):
            continue  # the header
        place = f"{path}:{line_number}"
        if len(cells) != 3 or not cells[2].lstrip("-").isdecimal():
            raise DataError(f"{place}: not a query, a document and a whole number, divided by tabs")
        query, document, gain = cells[0], cells[1], int(cells[2])
        for known, kind, name in ((queries, "query", query), (corpus, "document", document)):
            if name not in known:
                raise DataError(f"{place}: no {kind} {name}")
        if gain > 0:
            judged.setdefault(query, {})[document] = gain
    if not judged:
        raise DataError(f"{path}: no document is relevant to any query")
    return judged


def _queries(judged: Relevance, most: int, name: str) -> list[str]:
    """As many queries as there is room for with their relevant documents, in the order of a hash; at least one."""
    queries, taken, relevant = list(judged), list[int](), set[str]()
    for number in shuffled(len(queries), name):
        more = relevant | judged[queries[number]].keys()
        if taken and (len(more) > most or len(taken) == most):
            break
        taken.append(number)
        relevant = more
    return [queries[number] for number in sorted(taken)]


def _documents(corpus: list[str], relevant: set[str], most: int, name: str) -> list[str]:
    places = {number for number, document in enumerate(corpus) if document in relevant}
    others = [number for number in shuffled(len(corpus), name) if number not in places]
    kept = places | set(others[: max(0, most - len(places))])
    return [corpus[number] for number in sorted(kept)]
