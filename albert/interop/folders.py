"""Folders of models and the files in them, whatever the format. Never imports jax."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

from albert.checkpoints import CheckpointError
from albert.data.tokenizer import Tokenizer, VocabularyError


def read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a JSON file, or is cut off: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return values


def open_vocabulary(path: Path, lower_case: bool = True, strip_accents: bool = True) -> Tokenizer:
    """The vocabulary of a model; raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"There is no vocabulary file {path}.")
    try:
        return Tokenizer(path, lower_case, strip_accents)
    except VocabularyError as error:
        raise CheckpointError(str(error)) from error


def check_new(path: Path) -> None:
    """Raises CheckpointError when `path` is there already, other than as an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} is there already; choose another place or remove it.")


@contextlib.contextmanager
def new_folder(path: Path):
    """Yields a folder to fill, which becomes `path` in one rename; nothing is left on failure.

    Raises CheckpointError when `path` is there already.
    """
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp keeps others out
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
