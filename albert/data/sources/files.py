"""Finding and opening files of text, on disk or in an object store, plain or compressed.

Paths may begin with gs://, s3:// or az:// where the library of that store is installed (gcsfs,
s3fs, adlfs). Never imports jax.
"""

import concurrent.futures
import contextlib
import glob
import gzip
import hashlib
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from backports import zstd  # in the standard library from Python 3.14 on
from tqdm import tqdm

from albert.data.sources.base import SourceError
from albert.runtime.paths import epath

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError)
_REMOTE = re.compile("[a-z0-9]+://")
_HASHED_AT_ONCE = 1 << 24


def is_compressed(file: str) -> bool:
    return os.path.splitext(file)[1] in _OPENERS


def text_suffix(file: str) -> str:
    """The suffix below the compression's."""
    stem = os.path.splitext(file)[0] if is_compressed(file) else file
    return os.path.splitext(stem)[1]


def find_files(spec: str, path: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files that a path, a folder or a glob names, sorted; in folders only those `suffixes`.

    Raises SourceError when there are none.
    """
    if not path:
        raise SourceError(f"The source {spec!r} names no path.")
    root = epath.Path(path).expanduser()
    try:
        if root.is_dir():
            found = [file for file in _files_below(root) if text_suffix(file) in suffixes]
            kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
            problem = f"The folder {path} holds no {kinds} file."
        elif root.exists():
            found = [str(root)]
        else:
            found = _glob(str(root))
            found = [f for f in found if not epath.Path(f).is_dir()]
            problem = f"There is no file {path} (source {spec!r})."
    except ImportError as error:
        raise SourceError(
            f"{path}: reading from this store needs a package that is not installed: {error}"
        ) from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if not _REMOTE.match(path):
            raise
        # Every store's library has errors of its own, for credentials and the like.
        raise SourceError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    if not found:
        raise SourceError(problem)
    return sorted(found)


def _files_below(folder: epath.Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield str(path)


def _glob(path: str) -> list[str]:
    remote = _REMOTE.match(path)
    if not remote:
        return glob.glob(path, recursive=True)
    # The folder in front of the first part with a wildcard, and the rest.
    parts = path.removeprefix(remote[0]).split("/")
    wild = [i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)]
    if not wild:
        return []
    folder = epath.Path(remote[0] + "/".join(parts[: wild[0]]))
    return [str(file) for file in folder.glob("/".join(parts[wild[0] :]))]


@contextlib.contextmanager
def open_file(file: str) -> Iterator[BinaryIO]:
    """A stream of the decompressed bytes."""
    opener = _OPENERS.get(os.path.splitext(file)[1])
    with epath.Path(file).open("rb") as stored:
        if opener is None:
            yield stored
        else:
            with opener(stored) as stream:
                yield stream


def file_size(file: str) -> int:
    """Bytes as they are stored."""
    return epath.Path(file).stat().length


def file_identities(files: Sequence[str]) -> list[dict]:
    """Name, size and digest of the content of each; all of it is read, on all cores.

    Names are below the folder that all are in, so that a corpus may move.
    """
    names = [os.path.dirname(file) + "/" for file in files]
    folder = os.path.commonprefix(names)  # noqa: RUF071, the next line leaves whole names only
    folder = folder[: folder.rfind("/") + 1]
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads,
        tqdm(
            desc="Reading the sources' contents",
            total=len(files),
            unit="files",
            delay=2,
            leave=False,
        ) as bar,
    ):
        found = []
        for file, (size, digest) in zip(files, threads.map(_digest, files), strict=True):
            found.append({"file": file.removeprefix(folder), "bytes": size, "blake2b": digest})
            bar.update()
        return found


def _digest(file: str) -> tuple[int, str]:
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        with epath.Path(file).open("rb") as stream:
            while data := stream.read(_HASHED_AT_ONCE):
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
    return size, digest.hexdigest()


def line_number(file: str, offset: int) -> int:
    """Which line, from 1, the byte `offset` of the decompressed file is in."""
    line, left = 1, offset
    with open_file(file) as stream:
        while left > 0 and (data := stream.read(min(left, _HASHED_AT_ONCE))):
            line += data.count(b"\n")
            left -= len(data)
    return line


def rows_of(count: int, size: int) -> Iterator[tuple[int, int]]:
    """[0, count) in consecutive ranges of at most `size`."""
    return ((first, min(first + size, count)) for first in range(0, count, size))
