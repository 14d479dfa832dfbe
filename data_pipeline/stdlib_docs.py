"""The documentation strings of Python's standard library: a corpus of real English prose that every machine has."""

import ast
import importlib
import inspect
import json
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data_pipeline.durable import partial_name, write_whole, writing
from data_pipeline.parallel import map_in_order

SHORTEST = 30  # characters: what is shorter after joining is no document
JOINED_BELOW = 100  # characters: shorter ones are joined with their neighbours in the same module
_FILES_PER_BATCH = 20
# Tests are left out: slim distributions have none, and their docstrings say little.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "lib-dynload", "test", "tests", "idle_test"}
_NOT_IMPORTED = {"_tkinter", "readline"}  # they load a window system or touch the terminal

Document = tuple[str, str]  # (dotted name, text)


def write_stdlib_docs(output: Path, workers: int) -> tuple[int, int]:
    """Write the corpus as JSON Lines of {"id", "text"}, whole or not at all; (documents, bytes of text).

    The same Python gives the same bytes for any number of workers. UserError when the system refuses.
    """
    with writing(output):
        partial_name(output).touch()  # refused now rather than after the work
    identities: dict[str, str] = {}  # text -> the first name that has it
    for identity, text in _documents(workers):
        identities.setdefault(text, identity)
    lines = [json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n" for text, name in identities.items()]
    write_whole(output, "".join(lines).encode(errors="replace"))
    return len(lines), sum(len(text.encode(errors="replace")) for text in identities)


def documents_of_source(module: str, source: bytes) -> list[Document]:
    """The docstrings of a module's source, which is parsed and never run: a document a class, a document a function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []  # the library keeps some files that are broken on purpose
    found = [(module, ast.get_docstring(tree) or "")]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((f"{module}.{node.name}", "\n\n".join(_docstrings(node))))
    return _join_short(found)


def _documents(workers: int) -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    batches = [paths[start : start + _FILES_PER_BATCH] for start in range(0, len(paths), _FILES_PER_BATCH)]
    for documents in map_in_order(_make_reader, (root,), batches, workers):
        yield from documents
    yield from _topics()
    for name in _compiled_modules():
        yield from _documents_of_compiled(name)


def _make_reader(root: Path) -> Callable[[list[Path]], list[Document]]:
    def read(paths: list[Path]) -> list[Document]:
        documents: list[Document] = []
        for path in paths:
            source = path.read_bytes()
            if b'"""' in source or b"'''" in source:  # most files without one have no docstring worth their parsing
                module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                documents += documents_of_source(module, source)
        return documents

    return read


def _docstrings(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """The docstring of a class or function, then those of what is defined in it."""
    if text := ast.get_docstring(node):
        yield text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def _join_short(found: Iterable[Document]) -> list[Document]:
    """Long texts stay documents of their own, short ones are put together until they are long."""
    documents: list[Document] = []
    short: list[Document] = []
    for name, text in found:
        if len(text) >= JOINED_BELOW:
            documents.append((name, text))
        elif text:
            short.append((name, text))
        if sum(len(text) for _, text in short) >= JOINED_BELOW:
            documents.append((short[0][0], "\n\n".join(text for _, text in short)))
            short = []
    if sum(len(text) for _, text in short) >= SHORTEST:
        documents.append((short[0][0], "\n\n".join(text for _, text in short)))
    return documents


def _topics() -> Iterator[Document]:
    """The chapters of the language reference that help() shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship it apart
        return
    for name, text in sorted(topics.items()):
        yield f"topics.{name}", inspect.cleandoc(text)


def _compiled_modules() -> list[str]:
    """Modules without source: those inside the interpreter and the extension modules beside it."""
    names = set(sys.builtin_module_names)
    for folder in sys.path:
        if Path(folder).name == "lib-dynload":
            names |= {path.name.partition(".")[0] for path in Path(folder).glob("*.so")}
    return sorted(name for name in names if not name.startswith(("_test", "_xx", "xx")) and name not in _NOT_IMPORTED)


def _documents_of_compiled(name: str) -> list[Document]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated modules say so
            module = importlib.import_module(name)
    except ImportError:  # built without its library
        return []
    found = [(name, _own_docstring(module))]
    for member_name, member in sorted(vars(module).items()):
        texts = [_own_docstring(member)]
        if inspect.isclass(member):
            texts += [_own_docstring(value) for key, value in sorted(vars(member).items()) if not key.startswith("__")]
        if not inspect.ismodule(member) and not member_name.startswith("__"):
            found.append((f"{name}.{member_name}", "\n\n".join(text for text in texts if text)))
    return _join_short(found)


def _own_docstring(thing: object) -> str:
    """The docstring of a class, function, method or attribute; a mere value shows its class's and has none."""
    if not (
        inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing) or inspect.isdatadescriptor(thing)
    ):
        return ""
    text = getattr(thing, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""
