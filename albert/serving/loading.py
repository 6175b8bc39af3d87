"""The backend for a path, whatever lies there."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from albert.interop import exported
from albert.runtime.fields import ConfigError
from albert.runtime.paths import is_remote, place
from albert.serving.backend import Backend
from albert.serving.onnx_backend import OnnxBackend


def open_backend(
    path: str,
    batches: Iterable[int],
    lengths: Iterable[int],
    top: int = 5,
    abilities: Sequence[str] | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
    precision: str | None = None,
) -> Backend:
    """ONNX Runtime for a folder of `albert.export`, which imports no jax, and JAX for anything
    else that `albert.load` takes.

    Args:
      path: of the model.
      batches, lengths, top, abilities: see the backends.
      tokenizer: a .model file to use rather than the one beside the model.
      dtype: of activations, for JAX alone; None: float32.
      precision: of an exported folder alone; None: int8 where it is there.

    Raises:
      ConfigError: a flag does not belong to what lies there, or a backend cannot be as asked.
      CheckpointError: the model is missing or damaged.
    """
    name = Path(path).name or path
    folder = place(path)
    if not is_remote(folder) and exported.is_exported(folder):
        if dtype is not None:
            raise ConfigError(
                [f"--dtype: {path} is an exported program; --precision chooses among its files"]
            )
        vocabulary = None if tokenizer is None else place(tokenizer)
        with _as_problems():
            return OnnxBackend(
                folder, name, batches, lengths, top, abilities, precision, vocabulary
            )
    if precision is not None:
        raise ConfigError(
            [f"--precision: {path} is not a folder of tools/export.py; --dtype is its precision"]
        )
    import albert
    from albert.serving.jax_backend import JaxBackend

    model = albert.load(path, tokenizer, dtype or "float32")
    with _as_problems():
        return JaxBackend(model, name, batches, lengths, top, abilities)


@contextlib.contextmanager
def _as_problems() -> Iterator[None]:
    """What a backend says of its arguments is for who has given the flags."""
    try:
        yield
    except ValueError as error:
        raise ConfigError([str(error)]) from error
