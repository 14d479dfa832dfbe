"""Inputs that the `datasets` library opens: data sets of the Hugging Face hub, its local folders, save_to_disk.

They are streamed, a shard (mostly one data file) at a time; code that comes with a data set is never run.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from data_pipeline.columnar import column_records, column_values, record
from data_pipeline.errors import DataError, UserError
from data_pipeline.record import FileProblemError, Record, Value

PREFIX = "datasets:"
_SYNTAX = re.compile(r"(?P<name>[^#]+?)(@(?P<config>[^@#/]+))?(#(?P<split>[^@#/]+))?")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SECONDS = 20.0  # for the first answer of the hub
_ROWS = 256  # at a time
_NETWORK = ("httpx", "httpcore", "huggingface_hub.")  # modules of the errors of the network; httpx2 is one of them


@dataclass(frozen=True, slots=True)
class Dataset:
    """What load_dataset is to open: a name on the hub or a local path, a configuration, a split."""

    name: str
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        """As it was given."""
        return f"{PREFIX}{self.name}{f'@{self.config}' if self.config else ''}#{self.split}"


def parse(spec: str) -> Dataset | None:
    """The data set of "datasets:NAME[@CONFIG][#SPLIT]"; None for what does not begin so. UserError if malformed."""
    if not spec.startswith(PREFIX):
        return None
    match = _SYNTAX.fullmatch(spec.removeprefix(PREFIX))
    if match is None or match["name"].startswith("@") or match["name"].endswith("@"):
        raise UserError(f"{spec}: not of the form datasets:NAME[@CONFIG][#SPLIT], such as datasets:ag_news#train")
    return Dataset(match["name"], match["config"], match["split"] or "train")


class _Opened(NamedTuple):
    """What a data set gives its rows from."""

    stream: Any  # of the library; None where the files are read here
    files: list[str]  # Arrow files of save_to_disk, parquet files: paths and addresses that the library opens
    kind: str  # of the files: ".arrow" or ".parquet"
    identity: str

    @property
    def shards(self) -> int:
        """Parts that can be read apart."""
        return max(1, len(self.files)) if self.stream is None else int(self.stream.num_shards)


def describe(dataset: Dataset) -> tuple[int, str]:
    """The number of shards, and an identity that changes with the data: hashed revisions, or sizes and times of files.

    Raises UserError when the data set, its configuration or its split is not there or cannot be reached.
    """
    opened = _open(dataset)
    return opened.shards, opened.identity


def records(dataset: Dataset, shard: int, shards: int, text_field: str, limit: int) -> Iterator[Record]:
    """The rows of part `shard` (from 0) of `shards` in order; of one larger than `limit` bytes the first `limit`.

    `shards` is what `describe` said, or less. Raises UserError like `describe`, DataError when the hub fails in the
    middle, FileProblemError for a missing or other column and for damaged files.
    """
    opened = _opened(dataset)
    if shards > opened.shards:
        raise DataError(f"{dataset}: has {opened.shards} shards now, not {shards}: it changed; build with --restart")
    if opened.stream is None:
        files = opened.files[_part(len(opened.files), shard, shards)]
        found = _file_records(opened.kind, files, text_field, limit)
    else:
        values = _streamed(opened.stream, shard, shards, text_field, limit)
        found = (record(row, value, text_field) for row, value in enumerate(values, start=1))
    yield from _with_problems_named(dataset, found)


def whole_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Every row with all its columns, in order; class labels by their names, None where a label has none (GLUE's -1).

    Raises UserError like `describe`, and where the rows cannot be read to their end.
    """
    import datasets

    path = Path(dataset.name).expanduser()
    with _mistakes_named(dataset):
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            _open_saved(dataset, path)  # says what is wrong with the name of the split
            saved = datasets.load_from_disk(str(path))
            found = saved[dataset.split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            if not path.exists():
                _reach(dataset)
            found = _open_files(dataset, path).stream
            if found is None:  # parquet files, which `records` reads without the library
                name, files = (str(path.parent), path.name) if path.is_file() else (dataset.name, None)
                found = datasets.load_dataset(
                    name, dataset.config, data_files=files, split=dataset.split, streaming=True
                )
        labels = {name: kind for name, kind in (found.features or {}).items() if hasattr(kind, "int2str")}
        for row in found:
            named = {name: _label(kind, row[name]) for name, kind in labels.items()}
            yield dict(row) | named


def _label(kind: Any, number: Any) -> str | None:
    return kind.int2str(number) if isinstance(number, int) and 0 <= number < kind.num_classes else None


def _part(count: int, shard: int, shards: int) -> slice:
    """Which of `count` files in order are part `shard` of `shards`."""
    return slice(count * shard // shards, count * (shard + 1) // shards)


def _file_records(kind: str, files: Sequence[str], text_field: str, limit: int) -> Iterator[Record]:
    """Value by value, where the library would hold a row group or a batch."""
    from datasets.utils.file_utils import xopen

    row = 0
    for path in files:
        with xopen(path, "rb") as file:
            for found in column_records(kind, file, text_field, limit):
                row += 1
                yield found._replace(line=row, position=0)


def _streamed(stream: Any, shard: int, shards: int, text_field: str, limit: int) -> Iterator[Value]:
    """The text column, some rows at a time."""
    part = stream.shard(num_shards=shards, index=shard, contiguous=True)
    if part.column_names is not None:
        _check_column(part.column_names, text_field)
        part = part.select_columns([text_field])
    for table in part.with_format("arrow").iter(batch_size=_ROWS):
        _check_column(table.column_names, text_field)
        for column in table.column(text_field).chunks:
            yield from column_values(column, text_field, limit)


def _check_column(names: Iterable[str], text_field: str) -> None:
    if text_field not in names:
        raise FileProblemError("no text column", f"no column {text_field!r}, but {', '.join(names)}"[:200])


@cache
def _opened(dataset: Dataset) -> _Opened:
    """Once in a process: the hub takes seconds to list the files of a large data set."""
    return _open(dataset)


def _open(dataset: Dataset) -> _Opened:
    path = Path(dataset.name).expanduser()
    with _mistakes_named(dataset):
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _open_saved(dataset, path)
        if not path.exists():
            _reach(dataset)
        return _open_files(dataset, path)


def _open_saved(dataset: Dataset, path: Path) -> _Opened:
    """What save_to_disk wrote; the library maps its files, and names them in order."""
    import datasets

    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if dataset.split not in saved:
            raise _no_split(dataset, saved)
        saved, path = saved[dataset.split], path / dataset.split
    elif dataset.split != "train":
        raise UserError(f"{dataset}: {path} holds one data set without splits; leave #{dataset.split} away")
    files = [entry["filename"] for entry in saved.cache_files]
    return _Opened(None, files, ".arrow", _stamp([_local(Path(file)) for file in files]))


def _open_files(dataset: Dataset, path: Path) -> _Opened:
    """Data files of the hub, of a folder, or one by its name."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import ParquetConfig

    name, files = (str(path.parent), path.name) if path.is_file() else (str(path), None)
    if not path.exists():
        name = dataset.name
    builder = datasets.load_dataset_builder(name, dataset.config, data_files=files)
    data_files = builder.config.data_files or {}
    if data_files and dataset.split not in data_files:
        raise _no_split(dataset, data_files)
    found = data_files.get(dataset.split)
    identity = _stamp(_origins(found) if found else [builder.hash])
    if found and isinstance(builder.config, ParquetConfig):
        return _Opened(None, [str(file) for file in found], ".parquet", identity)
    return _Opened(builder.as_streaming_dataset(split=dataset.split), [], "", identity)


def _origins(files: Any) -> list[str]:
    """Of each file what tells its versions apart: size and time, or what the server says of it."""
    return [
        _local(Path(name)) if Path(name).is_file() else f"{name} {origin}"
        for name, origin in zip(files, files.origin_metadata, strict=True)
    ]


def _local(file: Path) -> str:
    status = file.stat()
    return f"{file.name} {status.st_size} {status.st_mtime_ns}"


def _stamp(parts: list[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())


def _reach(dataset: Dataset) -> None:
    """UserError at once where load_dataset would try for half a minute."""
    from huggingface_hub import HfApi, constants

    if not _HUB_NAME.fullmatch(dataset.name):
        raise UserError(f"{dataset}: no such file or folder: {dataset.name}")
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(
            f"{dataset}: no local folder {dataset.name}, and the hub is not asked: HF_HUB_OFFLINE or "
            "HF_DATASETS_OFFLINE is set; unset it or give a folder"
        )
    HfApi().dataset_info(dataset.name, timeout=_SECONDS)


def _no_split(dataset: Dataset, there: Iterable[Any]) -> UserError:
    return UserError(f"{dataset}: no split {dataset.split!r}; there are {', '.join(map(str, there))}")


@contextmanager
def _mistakes_named(dataset: Dataset) -> Iterator[None]:
    """What the libraries say of a data set that is not there, or not reached, as a UserError."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{dataset}: needs the package datasets; install it") from error
    except (OSError, ValueError, RuntimeError) as error:  # httpx and datasets derive theirs from these
        raise UserError(f"{dataset}: {_why(error)}") from error
    except Exception as error:
        if not _of_libraries(error):
            raise
        raise UserError(f"{dataset}: {_why(error)}") from error


def _with_problems_named(dataset: Dataset, found: Iterator[Record]) -> Iterator[Record]:
    try:
        yield from found
    except FileProblemError:
        raise
    except Exception as error:
        if _is_network(error):
            raise DataError(f"{dataset}: {_why(error)}; run the command again to go on") from error
        if not isinstance(error, OSError | ValueError | EOFError) and not _of_libraries(error):
            raise
        raise FileProblemError("damaged", f"cannot be read to its end: {_why(error)}") from error


def _of_libraries(error: Exception) -> bool:
    return type(error).__module__.startswith(("datasets.", "pyarrow.", "fsspec.", "aiohttp.", *_NETWORK))


def _is_network(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(_NETWORK):
            return True
        error = error.__cause__ or error.__context__
    return False


def _why(error: Exception) -> str:
    """One line: the kind of trouble, in words where the library's are of no help."""
    said = " ".join(str(error).split())[:300]
    if type(error).__name__ == "RepositoryNotFoundError":
        return "no local folder and no data set on the hub has this name, or it needs a login (HF_TOKEN)"
    if _is_network(error):
        return f"the hub cannot be reached ({said}); check the network, or give a local folder"
    return said or type(error).__name__
