"""The corpus that needs no download: the documentation installed with the user's Python.

Docstrings of the standard library and of the packages this project needs, found with `ast` (no
module is imported), and the language reference in `pydoc_data.topics`. What it holds depends on
the installed versions, which are part of its identity.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import itertools
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from albert.data.sources.base import BadRecord, Parsed

PACKAGES = (
    "absl",
    "etils",
    "flax",
    "grain",
    "jax",
    "matplotlib",
    "ml_collections",
    "numpy",
    "optax",
    "orbax",
    "pandas",
    "scipy",
    "sklearn",
    "tensorboard",
    "tensorflow_datasets",
)
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "test", "tests", "idlelib", "lib2to3"}
MIN_WORDS = 20  # shorter documents say next to nothing

_DOCUMENTS_PER_BLOCK = 1000

_DOCTEST = re.compile(r"^[ \t]*>>>.*(?:\n[ \t]*\S.*)*", re.MULTILINE)  # up to a blank line
_MARKUP = re.compile(r"^\W*$|^\.\. \S+::")  # underlines, tables, directives
_ROLE = re.compile(r":[\w:]+:`~?([^`<]*)[^`]*`|`{1,2}([^`]+)`{1,2}_{0,2}")


class PythonDocs:
    """A document per docstring or language topic; duplicates are dropped."""

    spec = "python-docs"
    paragraphs = True
    left_out = ()

    def identity(self) -> dict:
        top_level = importlib.metadata.packages_distributions()
        distributions = sorted({d for name in PACKAGES for d in top_level.get(name, ())})
        versions = {d: importlib.metadata.version(d) for d in distributions}
        return {"kind": "python-docs", "python": platform.python_version(), **versions}

    def __init__(self):
        # Parsing takes seconds and the vocabulary wants the text as well: keep what was read.
        self._read: list[list[str]] = []
        self._unread = self._parse()

    def __reduce__(self):
        return (PythonDocs, ())

    def parts(self) -> list[None]:
        return [None]

    def blocks(self, part: None) -> Iterator[list[list[str]]]:
        for number in itertools.count():
            first = number * _DOCUMENTS_PER_BLOCK
            missing = first + _DOCUMENTS_PER_BLOCK - len(self._read)
            self._read += itertools.islice(self._unread, max(missing, 0))
            if first >= len(self._read):
                return
            yield self._read[first : first + _DOCUMENTS_PER_BLOCK]

    def parse(self, block: list[list[str]]) -> Parsed:
        return Parsed(block, len(block), 0, ())

    def place(self, record: BadRecord) -> str:
        return record.where

    def _parse(self) -> Iterator[list[str]]:
        seen = set()
        for text in _texts():
            document = clean(text)
            if sum(paragraph.count(" ") + 1 for paragraph in document) < MIN_WORDS:
                continue
            digest = hashlib.blake2b("\n".join(document).encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                yield document


def clean(text: str) -> list[str]:
    """Prose paragraphs of a docstring: no doctests, underlines, directives or role marks."""
    paragraphs: list[list[str]] = [[]]
    indent = 0
    for line in _DOCTEST.sub("", text).expandtabs().splitlines():
        stripped = line.strip()
        starts = len(line) - len(line.lstrip())
        if not stripped or _MARKUP.match(stripped) or starts != indent:
            paragraphs.append([])
        if stripped and not _MARKUP.match(stripped):
            paragraphs[-1].append(_ROLE.sub(r"\1\2", stripped))
        indent = starts
    return [" ".join(lines) for lines in paragraphs if lines]


def docstrings(folder: Path) -> Iterator[str]:
    """Those of the Python files below a folder, indentation taken off; tests are left out."""
    for file in _python_files(folder):
        try:
            source = file.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's code
                tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and deliberately broken files ship with some packages
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node, clean=False)
                if docstring:
                    yield inspect.cleandoc(docstring)


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    site = Path(sysconfig.get_path("purelib"))
    for root in (Path(sysconfig.get_path("stdlib")), *(site / name for name in PACKAGES)):
        yield from docstrings(root)


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for name in sorted(files):
            if name.endswith(".py"):
                yield Path(folder) / name
