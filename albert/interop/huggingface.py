"""Folders as Hugging Face transformers writes and reads them: config.json, model.safetensors and
the vocabulary (huggingface_tokenizer.py)."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from albert.checkpoints import CheckpointError
from albert.data.tokenizer import SPECIAL
from albert.interop import huggingface_tokenizer
from albert.interop.folders import read_json
from albert.interop.weights import (
    PRETRAINED,
    Weights,
    entries,
    heads_elsewhere,
    read_config,
    released_groups,
    sentence_head,
    take,
)
from albert.models import sharing as parameter_sharing
from albert.models.config import AlbertConfig
from albert.models.layers import LAYER_NORM_EPSILON

# hidden_act there -> here: their "gelu" is the exact one. The first is what a file means that
# says nothing, and for each value the first key is what is written.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu": "gelu_erf",
    "relu": "relu",
}
# What a classifier tells: problem_type there -> `albert.models.kinds.KINDS`.
_KINDS = {
    "single_label_classification": "classes",
    "regression": "number",
    "multi_label_classification": "several",
}
MODEL, CONFIG = "model.safetensors", "config.json"
INDEX = f"{MODEL}.index.json"  # of a model in several files
_MAPPING = "encoder/embedding_hidden_mapping_in"
# Copies of tensors that it ties, and a buffer of older versions.
_TIED = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
_BUFFER = "albert.embeddings.position_ids"

_IN_LAYER = {
    "attention/query": "attention.query",
    "attention/key": "attention.key",
    "attention/value": "attention.value",
    "attention/output": "attention.dense",
    "attention_layer_norm": "attention.LayerNorm",
    "intermediate": "ffn",
    "output": "ffn_output",
    "output_layer_norm": "full_layer_layer_norm",
}
_ELSEWHERE = {
    "embeddings": "albert.embeddings",
    "embeddings/layer_norm": "albert.embeddings.LayerNorm",
    _MAPPING: "albert.encoder.embedding_hidden_mapping_in",
    "pooler": "albert.pooler",
    "mlm_head": "predictions",
    "mlm_head/transform": "predictions.dense",
    "mlm_head/layer_norm": "predictions.LayerNorm",
    "sop_head": "sop_classifier.classifier",
    "classifier_head": "classifier",
    "tokens_head": "classifier",
    "span_head": "qa_outputs",
}
_LEAF = {"kernel": "weight", "scale": "weight", "output_bias": "bias"}


def name_of(path: str) -> tuple[str, bool]:
    """The name of a parameter there, and whether it is stored transposed."""
    module, leaf = path.rsplit("/", 1)
    transposed = leaf == "kernel"
    leaf = f"{leaf}.weight" if leaf.endswith("_embeddings") else _LEAF.get(leaf, leaf)
    if match := re.fullmatch(r"encoder/group_(\d+)/layer_(\d+)/(.*)", module):
        group, inner, rest = match.groups()
        within = f"albert_layer_groups.{group}.albert_layers.{inner}.{_IN_LAYER[rest]}"
        return f"albert.encoder.{within}.{leaf}", transposed
    return f"{_ELSEWHERE[module]}.{leaf}", transposed


def read(folder: Path, vocabulary: Path | None = None) -> Weights:
    """A folder written by `save_pretrained`, of any class that holds an ALBERT encoder.

    Args:
      folder: holds config.json and model.safetensors, or the files that its index names.
      vocabulary: a .model file; None takes the one in the folder.

    Raises:
      CheckpointError: something is missing, damaged, does not fit or has no counterpart here.
    """
    config = _read_config(folder / CONFIG)
    path, tensors = _read_tensors(folder)
    # The encoder alone, saved from an AlbertModel, has its names without the prefix.
    prefix = "" if any(name.startswith("albert.") for name in tensors) else "albert."
    stored = {prefix + name: name for name in tensors}
    shapes = {whole: tensors[name].shape for whole, name in stored.items()}

    classifier = shapes.get("classifier.weight") if "classifier.bias" in shapes else None
    values = read_json(folder / CONFIG)
    heads: dict[str, dict] = sentence_head(values, folder / CONFIG) or dict(PRETRAINED)
    labels: tuple[str, ...] = ()
    if classifier:
        unsaid = "classes" if classifier[0] > 1 else "number"
        kind = _KINDS.get(str(values.get("problem_type")), unsaid)
        if "AlbertForMultipleChoice" in (values.get("architectures") or ()):
            kind = "choice"
        dropout = values.get("classifier_dropout_prob") or 0.0
        heads = {"classifier": {"labels": classifier[0], "dropout": dropout, "kind": kind}}
        if "AlbertForTokenClassification" in (values.get("architectures") or ()):
            heads = {"tokens": {"labels": classifier[0], "dropout": dropout}}
        labels = _labels(folder / CONFIG, classifier[0])
    if "qa_outputs.weight" in shapes and shapes["qa_outputs.weight"][0] == 2:
        heads = {"span": {}}
    wanted = entries(config, name_of, heads)
    weights = Weights(config, {}, heads=heads, labels=labels)
    params = take(wanted, shapes, lambda n: tensors[stored[n]], path, folder / CONFIG)
    if config.map_equal_embeddings and _is_identity(params):
        # What is written there for a model without a mapping.
        config = dataclasses.replace(config, map_equal_embeddings=False)
        params = {k: v for k, v in params.items() if not k.startswith(_MAPPING)}
        weights.notes.append(f"{_ELSEWHERE[_MAPPING]} is the identity and was left out")
    weights.config, weights.params = config, params
    weights.names = {e.path: stored[e.name] for e in wanted if e.path in params}
    known = {e.name for e in wanted} | {_BUFFER}
    for copy, of in _TIED.items():
        if copy in stored and of in stored:
            if not np.array_equal(tensors[stored[copy]], tensors[stored[of]]):
                raise CheckpointError(
                    f"{path}: {stored[copy]} is not {stored[of]}; ALBERT's MLM head shares them."
                )
            known.add(copy)
    weights.left_over = sorted(stored[name] for name in shapes.keys() - known)
    narrow = sorted({str(tensors[n].dtype) for n in weights.names.values()} - {"float32"})
    if narrow:
        weights.notes.append(f"{', '.join(narrow)} became float32")
    weights.tokenizer, weights.vocabulary_note = huggingface_tokenizer.read(folder, vocabulary)
    return weights


def _labels(path: Path, count: int) -> tuple[str, ...]:
    """Names of the classes by their ids; none where the file has no names of its own."""
    names = read_json(path).get("id2label")
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(count)}:
        return ()
    labels = tuple(str(names[str(i)]) for i in range(count))
    return () if labels == tuple(f"LABEL_{i}" for i in range(count)) else labels


def _read_tensors(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The tensors of a folder by their names, and the file that they are said to be in."""
    path, index = folder / MODEL, folder / INDEX
    if path.is_file():
        return path, _load(path)
    if index.is_file():
        return index, _read_shards(index)
    hint = (
        f" Load pytorch_model.bin with transformers and save it again: it then writes {MODEL}."
        if any(folder.glob("pytorch_model*.bin"))
        else ""
    )
    raise CheckpointError(f"There is no {MODEL} in {folder}, nor a {INDEX}.{hint}")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The tensors of a model in several files; raises CheckpointError naming what is missing."""
    placed = read_json(index).get("weight_map")
    if (
        not isinstance(placed, dict)
        or not placed
        or not all(isinstance(name, str) and Path(name).name == name for name in placed.values())
    ):
        raise CheckpointError(
            f"{index} is damaged: its weight_map does not name a file beside it for every tensor."
        )
    shards = sorted(set(placed.values()))
    if lacking := [name for name in shards if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index} names {len(shards)} files, and {', '.join(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} not in {index.parent}: copy "
            f"{'it' if len(lacking) == 1 else 'them'} there."
        )
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        found = _load(index.parent / shard)
        own = {name for name, file in placed.items() if file == shard}
        if wrong := sorted(own ^ found.keys()):
            verb = "is not in it" if wrong[0] in own else "is not said to be in it"
            raise CheckpointError(
                f"{index.parent / shard} is not the file that {index.name} describes: {wrong[0]} "
                f"{verb}. The files may be of two models."
            )
        tensors |= found
    return tensors


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged, cut off, not safetensors or of a type that NumPy lacks: {error}."
        ) from error


def write(weights: Weights, folder: Path) -> dict[str, str]:
    """Writes what `from_pretrained` of any ALBERT class reads; returns path -> name."""
    config = weights.config
    released_groups(config, "transformers")  # raises where there are none
    if "conditional_span" in weights.heads:
        raise CheckpointError(
            "transformers has no head for SQuAD 2.0 as ALBERT has it: an end that is given its "
            "start, and answerability. Save the model as albert or original."
        )
    params = dict(weights.params)
    if not config.maps_embeddings:
        # transformers always has this layer; x @ 1 + 0 is x.
        width = config.hidden_size
        params[f"{_MAPPING}/kernel"] = np.eye(width, dtype=np.float32)
        params[f"{_MAPPING}/bias"] = np.zeros(width, np.float32)
        config = dataclasses.replace(config, map_equal_embeddings=True)
    heads, _ = heads_elsewhere(weights.heads)
    present = [entry for entry in entries(config, name_of, heads) if entry.path in params]
    tensors = {entry.name: entry.write(params[entry.path]) for entry in present}
    # The metadata says whose layout it is; transformers refuses files without it. Not save_file,
    # whose files nobody but their owner may read.
    whole = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / MODEL).write_bytes(whole)
    written = config_json(weights)
    (folder / CONFIG).write_text(json.dumps(written, indent=2) + "\n")
    if weights.tokenizer:
        huggingface_tokenizer.write(weights.tokenizer, config.max_position_embeddings, folder)
    return {entry.path: entry.name for entry in present if entry.path in weights.params}


def config_json(weights: Weights, architecture: str | None = None) -> dict:
    """What stands in config.json.

    A sharing that transformers does not know has 1 for its num_hidden_groups: such weights are in
    no file that would be read by it.

    Args:
      architecture: the class of transformers; None: the one that has the heads of the weights.
    """
    config = weights.config
    groups = parameter_sharing.num_groups(config.sharing, config.num_hidden_layers) or 1
    written = {
        "architectures": [architecture or _architecture(weights)],
        **_written_config(config, groups),
        **heads_elsewhere(weights.heads)[1],
    }
    for head in {"classifier", "tokens"} & weights.heads.keys():
        fields, labels = weights.heads[head], weights.labels
        written["classifier_dropout_prob"] = fields.get("dropout", 0.0)
        names = labels or [f"LABEL_{i}" for i in range(fields["labels"])]
        written["id2label"] = {str(i): name for i, name in enumerate(names)}
        written["label2id"] = {name: i for i, name in enumerate(names)}
        problems = {kind: problem for problem, kind in _KINDS.items()}
        if head == "classifier" and (kind := fields.get("kind", "classes")) in problems:
            written["problem_type"] = problems[kind]
    return written


def _read_config(path: Path) -> AlbertConfig:
    if not path.is_file():
        raise CheckpointError(f"There is no {CONFIG} in {path.parent}.")
    values = read_json(path)
    if values.get("model_type") != "albert":
        raise CheckpointError(
            f"{path} describes a model of type {values.get('model_type')!r}, not albert."
        )
    epsilon = values.get("layer_norm_eps", LAYER_NORM_EPSILON)
    if epsilon != LAYER_NORM_EPSILON:
        raise CheckpointError(
            f"{path}: layer_norm_eps is {epsilon}; ALBERT's is {LAYER_NORM_EPSILON}."
        )
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(
            f"{path}: position_embedding_type is {positions!r}; ALBERT's is absolute."
        )
    config = read_config(path, ACTIVATIONS)
    same = config.embedding_size == config.hidden_size
    return dataclasses.replace(config, map_equal_embeddings=same)


def _is_identity(params: dict[str, np.ndarray]) -> bool:
    kernel, bias = params[f"{_MAPPING}/kernel"], params[f"{_MAPPING}/bias"]
    return not bias.any() and np.array_equal(kernel, np.eye(len(kernel)))


def _architecture(weights: Weights) -> str:
    """The class there that has the heads of the weights."""
    if "tokens" in weights.heads:
        return "AlbertForTokenClassification"
    if "span" in weights.heads:
        return "AlbertForQuestionAnswering"
    if classifier := weights.heads.get("classifier"):
        is_choice = classifier.get("kind") == "choice"
        return "AlbertForMultipleChoice" if is_choice else "AlbertForSequenceClassification"
    missing = weights.missing
    if "mlm_head" in missing:
        return "AlbertModel"
    return "AlbertForMaskedLM" if "sop_head" in missing else "AlbertForPreTraining"


def _written_config(config: AlbertConfig, groups: int) -> dict:
    names = (
        "vocab_size",
        "embedding_size",
        "hidden_size",
        "num_hidden_layers",
        "inner_group_num",
        "num_attention_heads",
        "intermediate_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "max_position_embeddings",
        "type_vocab_size",
        "initializer_range",
    )
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    return {
        "model_type": "albert",
        **{name: getattr(config, name) for name in names},
        "num_hidden_groups": groups,
        "hidden_act": theirs[config.hidden_act],
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "classifier_dropout_prob": 0.1,
        "pad_token_id": SPECIAL["<pad>"],
        "bos_token_id": SPECIAL["[CLS]"],
        "eos_token_id": SPECIAL["[SEP]"],
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
