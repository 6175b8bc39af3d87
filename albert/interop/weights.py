"""What a checkpoint of any format holds, and how its tensors are named elsewhere.

A format gives one function, from a path in this project's parameter tree to the name of that
tensor in its files; everything else about names and layouts follows from it here.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import flax.linen as nn
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.checkpoint import CheckpointError
from albert.data.tokenizer import Tokenizer, VocabularyError
from albert.model import Albert, abstract_params
from albert.model_config import AlbertConfig

# Parts that a checkpoint may lack as a whole: nothing else is computed from them.
HEADS = ("pooler", "mlm_head", "sop_head")
FLOATS = tuple(map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)))
# What `AlbertConfig` of the released program assumes where a file says nothing; Hugging Face's
# has the same numbers.
_UNSAID = {
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
}


@dataclasses.dataclass
class Weights:
    """A model outside of a run: what was read, or is to be written.

    `params`, `mu` and `nu` map a path such as "encoder/group_0/layer_0/output/kernel" to an array
    in this project's shapes.
    """

    config: AlbertConfig
    params: dict[str, np.ndarray]
    step: int | None = None  # steps taken, where the file says so
    mu: dict[str, np.ndarray] | None = None  # first moments of the gradient
    nu: dict[str, np.ndarray] | None = None  # second moments
    tokenizer: Tokenizer | None = None
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # of each path in the file
    left_over: list[str] = dataclasses.field(default_factory=list)  # in the file, not read
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The parts of the model that the file does not have."""
        return [head for head in HEADS if not any(part_of(path) == head for path in self.params)]

    @property
    def tree(self) -> dict:
        """`params` as the nested tree that the model takes; missing parts are not in it."""
        return unflatten_dict(self.params, sep="/")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: where it is here, and its name and layout in a file."""

    path: str
    name: str
    ours: tuple[int, ...]  # shape in this project's tree
    matrix: tuple[int, ...]  # the same with heads and their width as one axis
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """In the file."""
        return self.matrix[::-1] if self.transposed else self.matrix

    def read(self, value: np.ndarray) -> np.ndarray:
        """From the file's layout to ours; numbers of 16 and 64 bits become float32."""
        value = np.asarray(value).astype(np.float32, copy=False)
        return np.ascontiguousarray(value.T if self.transposed else value).reshape(self.ours)

    def write(self, value: np.ndarray) -> np.ndarray:
        value = np.asarray(value).astype(np.float32, copy=False).reshape(self.matrix)
        return np.ascontiguousarray(value.T if self.transposed else value)


def part_of(path: str) -> str:
    return path.split("/")[0]


def parameter_shapes(config: AlbertConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of the model; makes none."""
    boxed = abstract_params(Albert(config))
    flat = flatten_dict(nn.meta.unbox(boxed), sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def entries(config: AlbertConfig, naming: Callable[[str], tuple[str, bool]]) -> list[Entry]:
    """Every tensor of the model. `naming`: path -> (name, whether it is stored transposed)."""
    found = []
    for path, shape in parameter_shapes(config).items():
        matrix = shape
        if path.endswith("/attention/output/kernel"):
            matrix = math.prod(shape[:2]), shape[2]
        elif len(shape) == 3:  # query, key, value
            matrix = shape[0], math.prod(shape[1:])
        elif path.endswith("/bias"):
            matrix = (math.prod(shape),)
        name, transposed = naming(path)
        found.append(Entry(path, name, shape, matrix, transposed))
    return found


def take(
    wanted: Iterable[Entry],
    shapes: Mapping[str, tuple[int, ...]],
    get: Callable[[str], np.ndarray],
    where: str | Path,
    asked_by: str | Path,
) -> dict[str, np.ndarray]:
    """The parameters among a file's tensors, by path; a head that it lacks as a whole is left out.

    Args:
      wanted: the tensors that the config asks for.
      shapes: name and shape of every tensor in the file.
      get: reads one tensor.
      where: the file, `asked_by`: the config, for messages.

    Raises:
      CheckpointError: a tensor is missing or has another shape; names all of them.
    """
    wanted = list(wanted)
    found = {part_of(entry.path) for entry in wanted if entry.name in shapes}
    wanted = [e for e in wanted if part_of(e.path) in found or part_of(e.path) not in HEADS]
    missing = [entry.name for entry in wanted if entry.name not in shapes]
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} of the {len(wanted)} variables that {asked_by} asks "
            f"for: {_some(missing)}. It is not an ALBERT checkpoint, or not the one of that config."
        )
    other = [
        f"{e.name} has shape {list(shapes[e.name])} and should have {list(e.shape)}"
        for e in wanted
        if tuple(shapes[e.name]) != e.shape
    ]
    if other:
        raise CheckpointError(f"{where} does not fit {asked_by}: {_some(other, '; ')}.")
    params = {}
    for entry in wanted:
        value = get(entry.name)
        if value.dtype not in FLOATS:
            raise CheckpointError(
                f"{where}: {entry.name} is of type {value.dtype}; it must be "
                f"{', '.join(map(str, FLOATS))}."
            )
        params[entry.path] = entry.read(value)
    return params


def _some(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - 5} more" if len(items) > 5 else ""
    return separator.join(items[:5]) + more


def read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a JSON file, or is cut off: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return values


def read_config(path: Path, activations: Mapping[str, str]) -> AlbertConfig:
    """The model in an `albert_config.json` or a Hugging Face `config.json`.

    Fields that it does not have get the values that both programs assume; others are ignored.

    Args:
      activations: the file's `hidden_act` -> ours.

    Raises:
      CheckpointError: a value cannot be used; names file and field.
    """
    values = read_json(path)
    fields: dict = {}
    if "vocab_size" not in values:
        raise CheckpointError(f"{path}: vocab_size is missing.")
    for name, unsaid in {"vocab_size": 0, **_UNSAID}.items():
        value = values.get(name, unsaid)
        whole = isinstance(unsaid, int)
        if type(value) not in ((int,) if whole else (int, float)) or not abs(value) < 2**31:
            noun = "whole number" if whole else "number"
            raise CheckpointError(f"{path}: {name} is {value!r}; it must be a {noun}.")
        fields[name] = type(unsaid)(value)
    activation = values.get("hidden_act", next(iter(activations)))
    if not isinstance(activation, str) or activation not in activations:
        raise CheckpointError(
            f"{path}: hidden_act is {activation!r}; known here are {', '.join(activations)}."
        )
    config = AlbertConfig(
        **fields,
        hidden_act=activations[activation],
        map_equal_embeddings=False,
        dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    if problems := config.problems():
        raise CheckpointError(f"{path}: {'; '.join(problems)}.")
    return config


def open_vocabulary(path: Path, lower_case: bool = True, strip_accents: bool = True) -> Tokenizer:
    """The vocabulary of a model; raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"There is no vocabulary file {path}.")
    try:
        return Tokenizer(path, lower_case, strip_accents)
    except VocabularyError as error:
        raise CheckpointError(str(error)) from error


def check_vocabulary(weights: Weights, where: str | Path) -> None:
    """Raises CheckpointError when the vocabulary is not of the model's size."""
    tokenizer, size = weights.tokenizer, weights.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size != size:
        raise CheckpointError(
            f"The vocabulary {tokenizer.path} has {tokenizer.vocab_size} pieces and the model in "
            f"{where} {size}: it belongs to another model."
        )


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
