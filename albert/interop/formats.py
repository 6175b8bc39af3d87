"""Which format a path holds, and reading and writing any of them."""

from pathlib import Path

from albert.checkpoints import CheckpointError
from albert.interop import huggingface, original, workdir
from albert.interop.folders import new_folder
from albert.interop.weights import Weights, check_vocabulary, without_exits
from albert.runtime.console import warn
from albert.runtime.paths import is_remote

# A folder like a run's own, that transformers reads, that the released program reads.
FORMATS = ("albert", "huggingface", "original")
_WRITERS = {"albert": workdir.write, "huggingface": huggingface.write, "original": original.write}


def format_of(path: Path) -> str:
    """The format that `path` holds; raises CheckpointError when it is none of FORMATS."""
    if workdir.is_workdir(path):
        return "albert"
    if path.is_dir() and (path / huggingface.CONFIG).is_file():
        return "huggingface"
    if original.find_prefix(path):
        return "original"
    if not path.exists():
        raise CheckpointError(f"There is no {path}, nor a {path}.index.")
    if path.is_file():
        raise CheckpointError(f"{path} is a file; name the folder of the model, {path.parent}.")
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:5])
    raise CheckpointError(
        f"{path} is not a model: it is neither a run's workdir or one of its checkpoints, nor a "
        f"Hugging Face folder with {huggingface.CONFIG}, nor a TensorFlow checkpoint. It holds "
        f"{inside or 'nothing'}."
    )


def read(path: Path, with_moments: bool = False, vocabulary: Path | None = None) -> Weights:
    """The model in `path`, of any format.

    Args:
      path: a workdir, one checkpoint of it, a Hugging Face folder, or the prefix or folder of a
        checkpoint of the released program.
      with_moments: read the optimizer's moments as well, if there are any.
      vocabulary: the .model file to use rather than the one beside the weights.

    Raises:
      CheckpointError: it is none of these, is damaged, or its parts do not fit each other.
    """
    kind = format_of(path)
    if kind == "albert":
        weights = workdir.read(path, with_moments, vocabulary)
    elif kind == "huggingface":
        weights = huggingface.read(path, vocabulary)
    else:
        prefix = original.find_prefix(path)
        assert prefix is not None
        weights = original.read(prefix, with_moments, vocabulary)
    check_vocabulary(weights, path)
    return weights


def write(weights: Weights, path: Path, kind: str) -> dict[str, str]:
    """Writes a model as a new folder, whole or not at all; returns path -> name of every tensor.

    Of a model with a classifier on every depth other programs get the last one, which is told.

    Raises:
      CheckpointError: the folder is there already, or the format cannot hold such a model.
      ValueError: `kind` is not one of FORMATS.
    """
    if kind not in FORMATS:
        raise ValueError(f"format is {kind!r}; it must be one of {', '.join(FORMATS)}")
    if is_remote(path):
        raise CheckpointError(f"{path}: models are written to this machine; copy it there.")
    if kind != "albert" and "exits" in weights.heads:
        warn(
            f"No other program leaves early: what is written as {kind} has the last of the model's "
            f"{weights.config.depth} classifiers alone."
        )
        weights = without_exits(weights)
    with new_folder(path) as folder:
        return _WRITERS[kind](weights, folder)
