"""SHA-256 of files and of text."""

import hashlib
from pathlib import Path

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
