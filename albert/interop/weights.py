"""What a checkpoint of any format holds, and how its tensors are named elsewhere.

A format gives one function, from a path in this project's parameter tree to the name of that
tensor in its files; everything else about names and layouts follows from it here.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.checkpoints import CheckpointError
from albert.data.tokenizer import Tokenizer, is_padding
from albert.interop.folders import read_json
from albert.models import sharing as parameter_sharing
from albert.models.config import AlbertConfig
from albert.models.encoder import Albert, abstract_params
from albert.models.heads import HEADS, POOLING, has_parameters

# Parts that a checkpoint may lack as a whole: nothing else is computed from them.
OPTIONAL_PARTS = ("pooler", *(f"{name}_head" for name in HEADS))
# Heads by name with their fields: what a model has that nobody has fine-tuned.
PRETRAINED: dict[str, dict] = {"mlm": {}, "sop": {}}
# Written into config files of other programs, which ignore it: how sentence vectors are pooled.
_SENTENCE_POOLING = "sentence_pooling"
_GROUPS = "num_hidden_groups"
_STACKED = "encoder/layers/"  # where a run keeps its layers, one entry for each set of weights
FLOATS = tuple(map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)))
# What `AlbertConfig` of the released program assumes where a file says nothing; Hugging Face's
# has the same numbers.
_UNSAID = {
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
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

    `params`, `mu` and `nu` map a path such as "encoder/group_0/layer_0/output/kernel" to one tensor
    in this project's shapes: what a run holds as one array for all sets of a layer's weights are as
    many tensors here (see `unstacked`).
    """

    config: AlbertConfig
    params: dict[str, np.ndarray]
    step: int | None = None  # steps taken, where the file says so
    mu: dict[str, np.ndarray] | None = None  # first moments of the gradient
    nu: dict[str, np.ndarray] | None = None  # second moments
    tokenizer: Tokenizer | None = None
    heads: dict[str, dict] = dataclasses.field(default_factory=lambda: dict(PRETRAINED))
    labels: tuple[str, ...] = ()  # names of what the classifier tells apart, in their order
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # of each path in the file
    left_over: list[str] = dataclasses.field(default_factory=list)  # in the file, not read
    notes: list[str] = dataclasses.field(default_factory=list)
    # Why there is no vocabulary, or what is particular to it; a sentence, mostly empty.
    vocabulary_note: str = ""

    @property
    def missing(self) -> list[str]:
        """The parts of the model that the file does not have."""
        heads = (PRETRAINED | self.heads).items()
        parts = (
            "pooler",
            *(f"{name}_head" for name, fields in heads if has_parameters(name, fields)),
        )
        return [part for part in parts if not any(part_of(path) == part for path in self.params)]

    @property
    def tree(self) -> dict:
        """`params` as the nested tree that the model takes; missing parts are not in it."""
        return unflatten_dict(stacked(self.config, self.params), sep="/")


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


def layer_path(config: AlbertConfig, entry: int, leaf: str) -> str:
    """The path of one set's tensor of a layer, as the released program numbers them.

    `leaf` is a path below a layer, such as "attention/query/kernel".
    """
    group, inner = divmod(entry, config.inner_group_num)
    return f"encoder/group_{group}/layer_{inner}/{leaf}"


def unstacked(config: AlbertConfig, flat: Mapping[str, Any]) -> dict[str, Any]:
    """A run's flat tree with one tensor for each set of a layer's weights.

    Raises CheckpointError when a stack has more or fewer entries than the model has sets.
    """
    found = {}
    for path, value in flat.items():
        if not path.startswith(_STACKED):
            found[path] = value
            continue
        leaf = path.removeprefix(_STACKED)
        count = max(config.leaf_sets(leaf)) + 1
        if value.ndim == 0 or len(value) != count:
            raise CheckpointError(
                f"{path} has shape {list(value.shape)} and should have {count} entries, one for "
                f"each set of weights of model.sharing {config.sharing}."
            )
        found |= {layer_path(config, entry, leaf): value[entry] for entry in range(count)}
    return found


def stacked(config: AlbertConfig, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The opposite of `unstacked`; leaves of a layer that are not there stay out."""
    rest = {p: v for p, v in flat.items() if not re.match(r"encoder/group_\d+/", p)}
    leaves = {m[1] for p in flat if (m := re.match(r"encoder/group_\d+/layer_\d+/(.*)", p))}
    for leaf in sorted(leaves):
        sets = range(max(config.leaf_sets(leaf)) + 1)
        rest[_STACKED + leaf] = np.stack([flat[layer_path(config, s, leaf)] for s in sets])
    return rest


def parameter_shapes(
    config: AlbertConfig, heads: Mapping[str, Mapping] = PRETRAINED
) -> dict[str, tuple[int, ...]]:
    """Path and shape of every tensor of a model with these heads; makes none."""
    boxed = abstract_params(Albert(config, tuple(heads), heads))
    flat = flatten_dict(nn.meta.unbox(boxed), sep="/")
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in flat.items():
        if path.startswith(_STACKED):
            name = path.removeprefix(_STACKED)
            for entry in range(leaf.shape[0]):
                shapes[layer_path(config, entry, name)] = leaf.shape[1:]
        else:
            shapes[path] = leaf.shape
    return shapes


def released_groups(config: AlbertConfig, program: str) -> int:
    """num_hidden_groups of such a model there; raises CheckpointError when it has no such model."""
    if config.positions != "learned":
        raise CheckpointError(
            f"{program} knows a table of positions, and this model's are {config.positions} "
            "(model.positions): it has none. Save it as albert, or export it."
        )
    groups = parameter_sharing.num_groups(config.sharing, config.num_hidden_layers)
    if groups is None or config.per_layer_norm or config.lora_rank:
        raise CheckpointError(
            f"{program} knows model.sharing all, none and groups:G, without per_layer_norm and "
            f"lora_rank; this model has sharing {config.sharing}, per_layer_norm "
            f"{config.per_layer_norm} and lora_rank {config.lora_rank}. With sharing "
            "none it is the same function in more tensors: tools/convert.py --sharing=none."
        )
    return groups


def entries(
    config: AlbertConfig,
    naming: Callable[[str], tuple[str, bool]],
    heads: Mapping[str, Mapping] = PRETRAINED,
) -> list[Entry]:
    """Every tensor of a model with these heads.

    `naming`: path -> (name, whether it is stored transposed).
    """
    found = []
    for path, shape in parameter_shapes(config, heads).items():
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


def heads_elsewhere(heads: Mapping[str, Mapping]) -> tuple[dict[str, Mapping], dict[str, str]]:
    """The heads that other programs have tensors for, and what to write into their config instead
    of the others: of sentence vectors the pooling. Their projection is of use in training alone."""
    kept = {name: fields for name, fields in heads.items() if name != "sentence"}
    said = {_SENTENCE_POOLING: heads["sentence"]["pooling"]} if "sentence" in heads else {}
    return kept, said


def sentence_head(values: Mapping, path: Path) -> dict[str, dict]:
    """The head of sentence vectors that the config file of another program, read from `path`, tells
    of; empty where there is none. Raises CheckpointError."""
    if _SENTENCE_POOLING not in values:
        return {}
    pooling = values[_SENTENCE_POOLING]
    if pooling not in POOLING:
        raise CheckpointError(
            f"{path}: {_SENTENCE_POOLING} is {pooling!r}; it must be one of {', '.join(POOLING)}."
        )
    return {"sentence": {"pooling": pooling}}


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
    wanted = [
        e for e in wanted if part_of(e.path) in found or part_of(e.path) not in OPTIONAL_PARTS
    ]
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
    for name, unsaid in {"vocab_size": 0, _GROUPS: 1, **_UNSAID}.items():
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
    groups, layers = fields.pop(_GROUPS), fields["num_hidden_layers"]
    if not 1 <= groups <= max(layers, 1):
        raise CheckpointError(
            f"{path}: {_GROUPS} is {groups}; it must be from 1 to num_hidden_layers, {layers}."
        )
    config = AlbertConfig(
        **fields,
        sharing=parameter_sharing.of_groups(groups, layers),
        per_layer_norm=False,
        lora_rank=0,
        hidden_act=activations[activation],
        map_equal_embeddings=False,
        dtype="float32",
        param_dtype="float32",
        remat="none",
        attention="auto",
        scan_unroll=1,
        least_depth=0,
        positions="learned",
    )
    if problems := config.problems():
        raise CheckpointError(f"{path}: {'; '.join(problems)}.")
    return config


def check_vocabulary(weights: Weights, where: str | Path) -> None:
    """Notes rows of the model that are no piece; raises CheckpointError when the vocabulary is of
    another model."""
    tokenizer, size = weights.tokenizer, weights.config.vocab_size
    if tokenizer is None or tokenizer.vocab_size == size:
        return
    sizes = f"{tokenizer.path} has {tokenizer.vocab_size} pieces and the model in {where} {size}"
    if not is_padding(tokenizer.vocab_size, size):
        raise CheckpointError(f"The vocabulary {sizes}: it belongs to another model.")
    note = (
        f"The vocabulary {sizes} rows for them: the last {size - tokenizer.vocab_size} are no "
        "piece and are never predicted; they are saved with the model as they are."
    )
    weights.vocabulary_note = " ".join(filter(None, [note, weights.vocabulary_note]))


def without_exits(weights: Weights) -> Weights:
    """The model with the classifier of its last depth alone."""

    def rest(values):
        return values and {p: v for p, v in values.items() if part_of(p) != "exits_head"}

    return dataclasses.replace(
        weights,
        params=rest(weights.params),
        mu=rest(weights.mu),
        nu=rest(weights.nu),
        heads={name: fields for name, fields in weights.heads.items() if name != "exits"},
    )


def predicting_pieces(weights: Weights) -> dict[str, np.ndarray]:
    """`params` with a bias in the MLM head by which rows that are no piece are never predicted and
    take no share of the probability."""
    name = "mlm_head/output_bias"
    if weights.tokenizer is None or name not in weights.params:
        return weights.params
    bias = np.array(weights.params[name], np.float32)
    bias[weights.tokenizer.vocab_size :] = -1e30
    return weights.params | {name: bias}
