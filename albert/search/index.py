"""An index of sentences on disk: their texts, their places and their vectors.

A folder holds

    manifest.json     of which model the vectors are, how many, sizes and digests of the files
    texts.bin         UTF-8, one behind the other
    ends.npy          int64 [N], where in texts.bin each ends
    places.npy        int64 [N, 2], number of the file and line, from 1
    vectors.usearch   the vectors with a graph over them, for usearch

and is read by mapping it: what nobody asks for is not in memory.
"""

import importlib.util
import json
import mmap
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from albert.checkpoints import CheckpointError
from albert.interop.folders import new_folder, read_json
from albert.runtime.digests import file_digest
from albert.search import SearchError
from albert.search.sentences import Sentence

MANIFEST = "manifest.json"
PRECISIONS = {"float32": "f32", "float16": "f16", "int8": "i8"}  # and their names in usearch
_KIND, _VERSION = "search index", 1
_TEXTS, _ENDS, _PLACES, _VECTORS = "texts.bin", "ends.npy", "places.npy", "vectors.usearch"
_FILES = (_TEXTS, _ENDS, _PLACES, _VECTORS)
_AT_ONCE = 2048  # sentences whose vectors are asked for
# Of the graph: neighbours of a vector, and how many candidates are kept while it is built and
# while it is searched. docs/results.md has the recall that they give.
_CONNECTIVITY, _EXPANSION_ADD, _EXPANSION_SEARCH = 16, 128, 128


class Found(NamedTuple):
    """A sentence that was found."""

    text: str
    file: str
    line: int  # from 1
    score: float  # cosine of its vector with the query's


class Vectors(NamedTuple):
    """Whose vectors an index holds.

    `digest`: of all that they depend on; only a query of the same may be asked. `pooling`: what of
    the model they are; `width`: H. `model` and `precision`: where it was, and which of its
    programs, None where it has but one; for who asks without naming them.
    """

    digest: str
    pooling: str
    width: int
    model: str
    precision: str | None


class Index:
    """An index that is there.

    Args:
      folder: of `build`.

    Raises SearchError: it is none, it is damaged, or usearch is not installed.
    """

    def __init__(self, folder: Path):
        if not (folder / MANIFEST).is_file():
            raise SearchError(
                f"{folder} is no index: it holds no {MANIFEST}. tools/search_index.py makes one."
            )
        try:
            manifest = read_json(folder / MANIFEST)
        except CheckpointError as error:
            raise SearchError(str(error)) from error
        if manifest.get("kind") != _KIND:
            raise SearchError(f"{folder} holds something else than an index of sentences.")
        if manifest.get("version") != _VERSION:
            raise SearchError(
                f"{folder} is an index of version {manifest.get('version')}; this program reads "
                f"{_VERSION}. Build it again with tools/search_index.py."
            )
        self.folder = folder
        try:
            self.vectors = Vectors(**manifest["vectors"])
            self.precision: str = manifest["precision"]
            self._files: list[str] = manifest["files"]
            digests = {name: manifest["bytes_and_sha256"][name] for name in _FILES}
        except (KeyError, TypeError) as error:
            raise SearchError(
                f"{folder / MANIFEST} is damaged ({error!r}). Build the index again."
            ) from error
        for name, facts in digests.items():
            if not (folder / name).is_file() or file_digest(folder / name) != facts:
                raise SearchError(
                    f"{folder / name} is missing, damaged or cut off. Build the index again."
                )
        self._ends = np.load(folder / _ENDS, mmap_mode="r")
        self._places = np.load(folder / _PLACES, mmap_mode="r")
        with (folder / _TEXTS).open("rb") as file:
            self._texts = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._graph = _new_graph(self.vectors.width, self.precision)
        self._graph.view(str(folder / _VECTORS))
        self._alone = threading.Lock()  # usearch's searches share what they work in

    def __len__(self) -> int:
        return len(self._ends)

    def check(self, digest: str, name: str) -> None:
        """Raises SearchError where queries are of another model."""
        if digest != self.vectors.digest:
            precision = f" as {self.vectors.precision}" if self.vectors.precision else ""
            raise SearchError(
                f"{self.folder} holds vectors of another model than {name}, or of another "
                f"precision, pooling or vocabulary of it, so that they cannot be compared; it was "
                f"made with {self.vectors.model}{precision}. Ask with that one, or build the index "
                "again."
            )

    def search(self, vector: np.ndarray, top: int, exact: bool = False) -> list[Found]:
        """The sentences nearest to a query's vector, the nearest first.

        Args:
          vector: float [H], of any length but 0.
          top: how many, at least 1.
          exact: look at every sentence; otherwise the graph is followed, which finds most of them.
        """
        query = _stored(np.asarray(vector, np.float32)[None], self.precision)[0]
        with self._alone:
            matches = self._graph.search(query, min(top, len(self)), exact=exact)
        return [
            Found(*self._sentence(int(key)), 1 - float(distance))
            for key, distance in zip(matches.keys, matches.distances, strict=True)
        ]

    def _sentence(self, number: int) -> Sentence:
        begin = int(self._ends[number - 1]) if number else 0
        text = self._texts[begin : int(self._ends[number])].decode()
        file, line = map(int, self._places[number])
        return Sentence(text, self._files[file], line)


def build(
    path: Path,
    sentences: Iterable[Sentence],
    encode: Callable[[list[str]], np.ndarray],
    vectors: Vectors,
    precision: str,
    on_progress: Callable[[int], Any] = lambda count: None,
) -> int:
    """Writes an index as a new folder, whole or not at all; how many sentences it has.

    Args:
      path: the folder; must not be there yet.
      sentences: in any order; the index keeps it.
      encode: gives float [n, H] of n texts.
      vectors: whose they are.
      precision: of PRECISIONS.
      on_progress: called with how many more are done.

    Raises:
      SearchError: there is no sentence, a vector that is not finite, or no usearch.
      CheckpointError: `path` is there already.
    """
    graph = _new_graph(vectors.width, precision)
    ends, places, files, size = array("q"), array("q"), dict[str, int](), 0
    with new_folder(path) as folder:
        with (folder / _TEXTS).open("wb") as texts:
            for some in _batches(sentences):
                found = encode([sentence.text for sentence in some])
                if wrong := np.flatnonzero(~_is_direction(found)).tolist():
                    text, file, line = some[wrong[0]]
                    raise SearchError(
                        f"{file}, line {line}: the model gives no vector that can be compared for "
                        f"{text[:60]!r}."
                    )
                keys = np.arange(len(ends), len(ends) + len(some), dtype=np.uint64)
                graph.add(keys, _stored(found, precision))
                for text, file, line in some:
                    size += texts.write(text.encode())
                    ends.append(size)
                    places.extend((files.setdefault(file, len(files)), line))
                on_progress(len(some))
        if not ends:
            raise SearchError("There is no sentence to put into the index.")
        np.save(folder / _ENDS, np.frombuffer(ends, np.int64))
        np.save(folder / _PLACES, np.frombuffer(places, np.int64).reshape(-1, 2))
        graph.save(str(folder / _VECTORS))
        manifest = {
            "kind": _KIND,
            "version": _VERSION,
            "sentences": len(ends),
            "precision": precision,
            "vectors": vectors._asdict(),
            "files": list(files),
            "bytes_and_sha256": {name: file_digest(folder / name) for name in _FILES},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return len(ends)


def _batches(sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
    rest = iter(sentences)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _is_direction(vectors: np.ndarray) -> np.ndarray:
    """Which of the vectors have a direction: finite, and not 0."""
    return np.isfinite(vectors).all(1) & vectors.any(1)


def _stored(vectors: np.ndarray, precision: str) -> np.ndarray:
    """The vectors [n, H] in a precision. Only their directions matter, so that each has length 1,
    and as int8 the scale by which its largest number is 127."""
    if precision == "int8":
        scale = 127 / np.abs(vectors).max(1, keepdims=True)
        return np.rint(vectors * scale).astype(np.int8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(precision)


def _new_graph(width: int, precision: str) -> Any:
    if importlib.util.find_spec("usearch") is None:
        raise SearchError("usearch must be installed: pip install -r requirements-search.txt")
    from usearch.index import Index as Graph

    return Graph(
        ndim=width,
        metric="cos",
        dtype=PRECISIONS[precision],
        connectivity=_CONNECTIVITY,
        expansion_add=_EXPANSION_ADD,
        expansion_search=_EXPANSION_SEARCH,
    )
