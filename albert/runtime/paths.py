"""Folders that a run reads and writes, of this machine or of Google Cloud Storage (gs://), and
names of files that are made from what a user has named."""

import fnmatch
import hashlib
import importlib.util
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from etils import epath

_MOST_BYTES = 60  # of a file name's part, in UTF-8, in front of its digest
# What Windows keeps for devices, whatever stands behind a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII)


class PlaceError(ValueError):
    """A path to something that cannot be read or written from here."""


class LiteralPath(epath.gpath.PosixGPath):
    """A path whose own letters mean themselves: etils's `glob` reads `[`, `*` and `?` in the name
    of the folder that it looks through as a pattern too, and finds nothing there."""

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """What lies below this folder under names that match, level by level."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir() if self.is_dir() else ():
            if fnmatch.fnmatchcase(child.name, first):
                yield from child.glob(rest) if rest else (child,)


def place(text: str) -> Path:
    """The folder or file that a user names.

    Raises PlaceError for a store that runs cannot be kept in, and where gcsfs is missing.
    """
    if "://" not in text:
        return Path(text).expanduser()
    if not text.startswith("gs://"):
        raise PlaceError(
            f"{text}: runs are kept on this machine's file systems or on gs://; Orbax takes no "
            "other store"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise PlaceError(f"{text}: pip install gcsfs")
    return LiteralPath(text)  # it has the methods of a Path


def is_remote(path: Path) -> bool:
    return str(path).startswith("gs://")


def resolved(path: Path) -> Path:
    """The path without `..` and links; of a store as it is."""
    return path if is_remote(path) else path.resolve()


def modified(path: Path) -> float:
    """When a file was changed last, in seconds since 1970; here or in a store."""
    status = path.stat()
    return status.mtime if is_remote(path) else status.st_mtime  # type: ignore[attr-defined]


def file_name_part(text: str, also: str = "") -> str:
    """A part of a file's name that tells a text or path from every other, and can be read.

    At most 69 bytes of UTF-8, valid on common file systems, also where upper and lower case are the
    same. A short text of lower-case letters of any script, digits and `=,._+-` is itself. Where
    something had to be replaced or cut (at the front: a path's end tells more) eight digits of its
    SHA-256 stand behind it.

    Args:
      text: any.
      also: more characters that stay, where the file system is known to take them.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(
        letter if letter in "=,._+-" + also or unicodedata.category(letter)[0] in "LMN" else "-"
        for letter in folded
    )
    short = kept.encode()[-_MOST_BYTES:].decode(errors="ignore").strip("-.")
    if _DEVICES.fullmatch(short):
        short = f"_{short}"
    # What looks like a name with digits behind it gets some too, or it could be another text's.
    if text and short == text and not re.search("-[0-9a-f]{8}$", text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub('--+', '-', short)}-{digest}" if short else digest


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name below the folder, path) of every file, sorted."""

    def walk(path: Path, name: str) -> Iterator[tuple[str, Path]]:
        for child in sorted(path.iterdir(), key=lambda p: p.name):
            inner = f"{name}{child.name}"
            if child.is_dir():
                yield from walk(child, f"{inner}/")
            else:
                yield inner, child

    yield from walk(folder, "")


def replace_text(path: Path, text: str) -> None:
    """Writes a file that is whole or as it was before at any moment; objects of a store are."""
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def remove_folder(folder: Path, suffix: str) -> None:
    """Removes a folder; at any moment it is whole or has the suffix behind its name. In a store
    it is gone one object after the other."""
    if is_remote(folder):
        folder.rmtree()  # type: ignore[attr-defined] # epath has it
        return
    gone = folder.with_name(folder.name + suffix)
    folder.rename(gone)
    shutil.rmtree(gone)


def append_text(path: Path, text: str) -> None:
    """Adds to a file's end. A store knows no growing files: there it is written anew."""
    if is_remote(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
