"""Finding and opening files of text, on disk or in an object store, plain or compressed.

Paths may begin with gs://, s3:// or az:// where the library of that store is installed (gcsfs,
s3fs, adlfs). Never imports jax.
"""

import concurrent.futures
import contextlib
import glob
import gzip
import hashlib
import json
import lzma
import os
import re
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import filelock
from backports import zstd  # in the standard library from Python 3.14 on
from tqdm import tqdm

from albert.data.cache import fingerprint_of
from albert.data.sources.base import SourceError
from albert.runtime.paths import epath, is_remote, replace_text

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError)
_STORES = ("gs://", "s3://", "az://")
_REMOTE = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")
_READ_AT_ONCE = 1 << 24
_SAMPLE = 4096  # bytes, at the beginning, the middle and the end of a file
_SETTLED = 2_000_000_000  # nanoseconds: times of files are as coarse as that in places


def is_compressed(file: str) -> bool:
    return os.path.splitext(file)[1] in _OPENERS


def text_suffix(file: str) -> str:
    """The suffix below the compression's."""
    stem = os.path.splitext(file)[0] if is_compressed(file) else file
    return os.path.splitext(stem)[1]


class FilesOfSource(NamedTuple):
    """What a path, a folder or a glob names."""

    files: tuple[str, ...]  # sorted
    left_out: tuple[str, ...]  # what was not taken, a phrase for each kind


def find_files(spec: str, path: str, suffixes: tuple[str, ...]) -> FilesOfSource:
    """Files that a path, a folder or a glob names; in folders only those `suffixes`.

    Folders are read without what is hidden in them, and every file once, however many links lead
    to it. What exists is taken by its name, square brackets and all, and else for a glob.

    Raises SourceError when there are none.
    """
    if not path:
        raise SourceError(f"The source {spec!r} names no path.")
    path = _local_path(path)
    hidden: list[str] = []
    others: list[str] = []
    loops: list[str] = []  # links to a folder that they are in
    files: list[str] = []
    try:
        root = epath.Path(path).expanduser()
        if root.is_dir():
            for file in _files_below(root, hidden, loops, set()):
                (files if text_suffix(file) in suffixes else others).append(file)
            problem = f"The folder {path} holds no {' or '.join(suffixes)} file."
        elif root.exists():
            return FilesOfSource((str(root),), ())
        else:
            for file in _glob(str(root)):
                (others if epath.Path(file).is_dir() else files).append(file)
            problem = f"There is no file {path} (source {spec!r})."
            if others:
                problem += f" It names folders only: {_named(others)}; add /**/*.txt, for example."
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
    files, repeated = _each_once(files)
    left_out = [
        f"{len(names)} {what} ({_named(names)})"
        for names, what in (
            (hidden, "hidden"),
            (others, "of another kind"),
            ([*loops, *repeated], "that links lead to again"),
        )
        if names
    ]
    if not files:
        raise SourceError(problem + (f" Left out: {', '.join(left_out)}." if hidden else ""))
    return FilesOfSource(tuple(files), tuple(left_out))


def _local_path(path: str) -> str:
    """The path without file://; raises SourceError for what no library here reads."""
    scheme = _REMOTE.match(path)
    if not scheme or scheme[0] in _STORES:
        return path
    if scheme[0].lower() == "file://":
        host, _, rest = path[len(scheme[0]) :].partition("/")
        if host in ("", "localhost"):
            return urllib.request.url2pathname("/" + rest)
    raise SourceError(
        f"{path}: text is read from this machine's file systems and from {', '.join(_STORES)}, not "
        f"from {scheme[0]}: copy it to one of them first."
    )


def _named(files: Sequence[str]) -> str:
    names = [os.path.basename(file.rstrip("/")) for file in files[:3]]
    return ", ".join(names) + (", ..." if len(files) > 3 else "")


def _files_below(
    folder: epath.Path, hidden: list[str], loops: list[str], above: set[str]
) -> Iterator[str]:
    """Files of a folder and of those in it; collects what is not walked. `above`: the real folders
    that this one is in."""
    real = _real(str(folder))
    if real in above:
        loops.append(str(folder))
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            hidden.append(str(path))
        elif path.is_dir():
            yield from _files_below(path, hidden, loops, above | {real})
        else:
            yield str(path)


def _each_once(files: list[str]) -> tuple[list[str], list[str]]:
    """The files sorted, and those among them that are another one by a link."""
    names: dict[str, list[str]] = {}
    for file in sorted(files):
        names.setdefault(_real(file), []).append(file)
    # The name without links if it is among them, so that removing a link changes nothing.
    kept = {file: min(same, key=_is_link) for same in names.values() for file in same}
    first = [file for file in sorted(files) if kept[file] == file]
    return first, [file for file in sorted(files) if kept[file] != file]


def _real(path: str) -> str:
    return path if _REMOTE.match(path) else os.path.realpath(path)


def _is_link(path: str) -> bool:
    return os.path.realpath(path) != os.path.abspath(path)


def _glob(path: str) -> list[str]:
    """What a glob names; its first parts that exist as they are written stand for themselves."""
    remote = _REMOTE.match(path)
    prefix, rest = (remote[0], path.removeprefix(remote[0])) if remote else ("", path)
    parts = rest.split("/")
    wild = len(parts)
    for place, part in enumerate(parts):
        if re.search(r"[*?\[]", part):
            literal = prefix + "/".join(parts[: place + 1])
            exists = epath.Path(literal).exists() if remote else os.path.exists(literal)
            if not exists:
                wild = place
                break
    if wild == len(parts):
        return []
    pattern = "/".join(parts[wild:])
    folder = prefix + "/".join(parts[:wild])
    if remote:
        return [str(file) for file in epath.Path(folder).glob(pattern)]
    start = "/".join(parts[:wild]) or ("/" if wild else "")
    return list(dict.fromkeys(_matches(start, parts[wild:])))


def _matches(folder: str, parts: list[str]) -> Iterator[str]:
    """What the parts of a glob name below a folder of this machine. Unlike `glob.glob` it walks no
    loop of links, of which two would take it for ever."""
    first, *rest = parts
    if first == "**":
        for below in _folders_below(folder, set()):
            yield from _matches(below, rest or ["*"])
        return
    base = f"{folder.rstrip('/')}/" if folder else ""
    for match in sorted(glob.glob(glob.escape(base) + first)):
        if not rest:
            yield match
        elif os.path.isdir(match):
            yield from _matches(match, rest)


def _folders_below(folder: str, above: set[str]) -> Iterator[str]:
    """A folder and those in it, without hidden ones and without links to one that they are in."""
    real = os.path.realpath(folder or ".")
    if real in above:
        return
    yield folder
    for entry in sorted(os.scandir(folder or "."), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            inner = os.path.join(folder, entry.name) if folder else entry.name
            yield from _folders_below(inner, above | {real})


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


def file_identities(files: Sequence[str], memory: Path | None = None) -> list[dict]:
    """Name, size and digest of the content of each file.

    Names are below the folder that all are in, so that a corpus may move. A file is read from its
    beginning to its end, on all cores, unless `memory` says that it was read before and it looks
    as it did then: of the same size and time, and the same in samples. What only looks otherwise,
    as a copy does, has the same digest.

    Args:
      memory: folder that remembers digests. Of several processes that ask for the same files one
        reads them and the others wait, where they share that folder.

    Raises:
      SourceError: a file cannot be read.
    """
    names = [os.path.dirname(file) + "/" for file in files]
    folder = os.path.commonprefix(names)  # noqa: RUF071, the next line leaves whole names only
    folder = folder[: folder.rfind("/") + 1]
    path = None
    if memory is not None:
        place = folder if _REMOTE.match(folder) else os.path.abspath(folder)
        path = memory / f"digests-{fingerprint_of({'place': place})}.json"
    with _alone(path):
        read = _remembered(path)
        digests = _digests(files, read)
        if path is not None and not digests.items() <= read.items():
            # It only saves time: a folder that cannot be written does without.
            with contextlib.suppress(OSError):
                replace_text(path, json.dumps(read | digests, indent=0))
    return [
        {"file": file.removeprefix(folder), "bytes": d["bytes"], "blake2b": d["blake2b"]}
        for file, d in digests.items()
    ]


@contextlib.contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Holds the lock of a file, where its folder can be written and is not on a bucket, whose files
    are whole at any moment."""
    lock = None
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
    if path is not None and not is_remote(path):
        with contextlib.suppress(OSError):
            lock = filelock.FileLock(f"{path}.lock")
            try:
                lock.acquire(timeout=1)
            except filelock.Timeout:
                print(
                    "Another process is reading the sources' contents; waiting for it.",
                    file=sys.stderr,
                    flush=True,
                )
                lock.acquire()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _remembered(path: Path | None) -> dict[str, dict]:
    try:
        return json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):  # not there yet, or damaged: the files are read again
        return {}


def _digests(files: Sequence[str], remembered: dict[str, dict]) -> dict[str, dict]:
    """How each file looks, with its digest."""

    def digest_of(file: str) -> dict:
        try:
            look = _look(file)
            before = remembered.get(file)
            if before is not None and all(before[name] == look[name] for name in look):
                return before
            size, digest = _digest(file)
        except OSError as error:
            raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
        if size != look["bytes"] or time.time_ns() - look["time"] < _SETTLED:
            look["time"] = -1  # it may change again within the resolution of its time
        return {**look, "blake2b": digest, "bytes": size}

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
        digests = {}
        for file, digest in zip(files, threads.map(digest_of, files), strict=True):
            digests[file] = digest
            bar.update()
        return digests


def _look(file: str) -> dict:
    """What can be seen of a file without reading it: its size, its time and samples of it."""
    if _REMOTE.match(file):  # objects of a store do not change without another time
        stat = epath.Path(file).stat()
        return {"bytes": stat.length, "time": int(stat.mtime * 1e9), "sample": ""}
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as stream:
        status = os.fstat(stream.fileno())
        for place in (0, status.st_size // 2, max(status.st_size - _SAMPLE, 0)):
            stream.seek(place)
            digest.update(stream.read(_SAMPLE))
    return {"bytes": status.st_size, "time": status.st_mtime_ns, "sample": digest.hexdigest()}


def _digest(file: str) -> tuple[int, str]:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with epath.Path(file).open("rb") as stream:
        while data := stream.read(_READ_AT_ONCE):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()


def line_number(file: str, offset: int) -> int:
    """Which line, from 1, the byte `offset` of the decompressed file is in."""
    line, left, last = 1, offset, b""
    with open_file(file) as stream:
        while left > 0 and (data := stream.read(min(left, _READ_AT_ONCE))):
            left -= len(data)
            line += unified_line_breaks(last + data).count(b"\n") - unified_line_breaks(last).count(
                b"\n"
            )
            last = data[-1:]
    return line


def unified_line_breaks(data: bytes) -> bytes:
    """With every line break as a line feed: of Windows (CR LF), of old Macs (CR) and of Unix."""
    if b"\r" not in data:
        return data
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def rows_of(count: int, size: int) -> Iterator[tuple[int, int]]:
    """[0, count) in consecutive ranges of at most `size`."""
    return ((first, min(first + size, count)) for first in range(0, count, size))
