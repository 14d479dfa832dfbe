"""The texts of a column of a .parquet or .arrow file, row by row, in memory that is bounded whatever the file holds."""

from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import IO, Any

import numpy as np

from data_pipeline import arrow_batches, parquet_values
from data_pipeline.parquet_pages import DELTA_BYTE_ARRAY, DICTIONARY, Page, read_pages
from data_pipeline.record import OVERSIZED, UNOPENED, FileProblemError, Record, Value

PAGE_BYTES = 64 << 20  # the largest page that pyarrow opens
BATCH_BYTES = 64 << 20  # of rows that pyarrow gives at a time
WHOLE_BATCH_BYTES = 256 << 20  # the largest batch of an Arrow file that pyarrow opens
_ROWS = 256  # at a time
_CHUNK_BYTES = 1 << 20

Placed = tuple[Value, int]  # a value, and how many bytes of the file were read by then


def column_records(file_format: str, file: IO[bytes], text_field: str, limit: int) -> Iterator[Record]:
    """The rows of one column; only that column is read. Of a value larger than `limit` bytes the first `limit`.

    Raises FileProblemError where no such column of texts is, EOFError, OSError and pyarrow's errors of damage.
    """
    found = _parquet(file, text_field, limit) if file_format == ".parquet" else _arrow(file, text_field, limit)
    for row, (value, position) in enumerate(found, start=1):
        yield record(row, value, text_field, position)


def record(row: int, value: Value, text_field: str, position: int = 0) -> Record:
    """The record of a value of the column `text_field`."""
    if value.content is None:
        return Record(row, b"", f"field {text_field!r} is not a string", position=position)
    return Record(row, value.content, value.reason, position=position)


def column_values(column: Any, text_field: str, limit: int) -> Iterator[Value]:
    """The texts of a pyarrow column as UTF-8; of one above `limit` bytes no more is copied than is given."""
    import pyarrow  # type: ignore[import-untyped]

    check_texts(column.type, text_field)
    indices: Any = range(len(column))
    if pyarrow.types.is_dictionary(column.type):
        indices, column = column.indices.to_pylist(), column.dictionary
    texts = column.cast(pyarrow.large_binary())
    if len(texts) == len(indices) and texts.nbytes <= limit and isinstance(indices, range):
        yield from map(Value, texts.to_pylist())
        return
    for index in indices:
        text = None if index is None else texts[index].as_buffer()
        if text is None:
            yield Value(None)
        else:
            yield Value(text[:limit].to_pybytes(), OVERSIZED if text.size > limit else "")


def check_texts(kind: Any, text_field: str) -> None:
    """FileProblemError for a pyarrow type that is none of texts."""
    import pyarrow

    types = pyarrow.types
    of_values = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if not any(is_known(of_values) for is_known in (*texts, *binary)):
        raise FileProblemError("no text column", f"column {text_field!r} holds {kind}, not text")


def _parquet(file: IO[bytes], text_field: str, limit: int) -> Iterator[Placed]:
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    table = parquet.ParquetFile(file, memory_map=False, buffer_size=_CHUNK_BYTES, pre_buffer=False)
    _check_column(table.schema_arrow, text_field)
    size, done, total = _size(file), 0, max(1, table.metadata.num_rows)
    for group in range(table.num_row_groups):
        for value in _row_group(file, table, group, text_field, limit):
            done += 1
            yield value, size * done // total


def _row_group(file: IO[bytes], table: Any, group: int, text_field: str, limit: int) -> Iterator[Value]:
    schema = table.schema
    number = next(index for index in range(len(schema)) if schema.column(index).path == text_field)
    chunk = table.metadata.row_group(group).column(number)
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    pages = list(read_pages(file, start, chunk.num_values))
    if max((page.size for page in pages), default=0) > PAGE_BYTES:
        optional = schema.column(number).max_definition_level > 0
        if chunk.physical_type == "BYTE_ARRAY" and parquet_values.is_readable(pages, optional):
            column = parquet_values.Column(file, chunk.compression, optional, limit)
            yield from parquet_values.page_values(column, pages)
        else:
            yield from repeat(Value(b"", UNOPENED), chunk.num_values)
        return
    options = {"columns": [text_field], "row_groups": [group], "use_threads": False}
    for batch in table.iter_batches(_batch_rows(pages), **options):
        yield from column_values(batch.column(text_field), text_field, limit)


def _batch_rows(pages: Sequence[Page]) -> int:
    """So many rows that they do not exceed BATCH_BYTES, at most _ROWS, at least one."""
    # A value in one of these is as large as the page at most, but any number of rows may have it.
    shared = [page.size for page in pages if page.kind == DICTIONARY or page.encoding == DELTA_BYTE_ARRAY]
    rows = _ROWS
    while rows > 1 and (rows * max(shared, default=0) > BATCH_BYTES or _heaviest(pages, rows) > BATCH_BYTES):
        rows //= 2
    return rows


def _heaviest(pages: Sequence[Page], rows: int) -> int:
    """Bytes of all pages that `rows` rows side by side may be in, at most."""
    data = [page for page in pages if page.is_data]
    ends_P, sizes_P1 = np.cumsum([page.values for page in data]), np.cumsum([0, *(page.size for page in data)])
    last_P = np.minimum(np.searchsorted(ends_P, ends_P + rows - 1), len(data) - 1)
    return int((sizes_P1[last_P + 1] - sizes_P1[:-1]).max(initial=0))


def _arrow(file: IO[bytes], text_field: str, limit: int) -> Iterator[Placed]:
    """Both kinds of .arrow: files, and the streams that the library `datasets` saves."""
    import pyarrow

    is_file = file.read(len(arrow_batches.MAGIC)) == arrow_batches.MAGIC
    file.seek(0)
    opened = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
    _check_column(opened.schema, text_field)
    kind, number = opened.schema.field(text_field).type, arrow_batches.first_buffer(opened.schema, text_field)
    after_schema = file.tell()
    batches = arrow_batches.read_batches(file, _size(file))
    first = next(batches, None)
    if first and (number is None or not arrow_batches.is_readable(kind, first)):
        file.seek(after_schema)
        yield from _arrow_by_pyarrow(file, opened, text_field, limit)
    elif first and number is not None:
        for batch in chain([first], batches):
            for value in arrow_batches.batch_values(file, batch, number, kind, limit):
                yield value, file.tell()


def _arrow_by_pyarrow(file: IO[bytes], opened: Any, text_field: str, limit: int) -> Iterator[Placed]:
    """Of what arrow_batches does not read, such as dictionaries; pyarrow opens whole batches."""
    position = file.tell()
    heaviest = arrow_batches.heaviest(file, _size(file))
    if heaviest > WHOLE_BATCH_BYTES:
        kind = opened.schema.field(text_field).type
        raise FileProblemError(
            "too large",
            f"column {text_field!r} holds {kind} in a batch of {heaviest >> 20:,} MiB; "
            f"such columns are read from batches of up to {WHOLE_BATCH_BYTES >> 20:,} MiB",
        )
    file.seek(position)
    count = getattr(opened, "num_record_batches", None)
    for batch in opened if count is None else map(opened.get_batch, range(count)):
        for start in range(0, batch.num_rows, _ROWS):
            for value in column_values(batch.column(text_field).slice(start, _ROWS), text_field, limit):
                yield value, file.tell()


def _check_column(schema: Any, text_field: str) -> None:
    """FileProblemError where there is no such column, or none of texts."""
    if text_field not in schema.names:
        raise FileProblemError("no text column", f"no column {text_field!r}, but {', '.join(schema.names)}")
    check_texts(schema.field(text_field).type, text_field)


def _size(file: IO[bytes]) -> int:
    position = file.tell()
    size = file.seek(0, 2)
    file.seek(position)
    return size
