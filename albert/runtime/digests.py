"""SHA-256 of files, of text and of arrays."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_READ = 1 << 22  # bytes of a file


def file_digest(path: Path) -> list:
    """[bytes, SHA-256] of a file, here or in a store."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(_READ):
            digest.update(part)
            size += len(part)
    return [size, digest.hexdigest()]


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def arrays_digest(arrays: Mapping[str, np.ndarray], described: str = "") -> str:
    """Of names, types, shapes and numbers, in the order of the names, and of a text."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(f"\n{name} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
