"""Checkpoints of the released TensorFlow 1 program, google-research/albert.

TensorFlow reads and writes them; it is imported here only, when such a checkpoint is, and is an
optional extra (requirements-original.txt). The package on PyPI that reads this format without
TensorFlow is unfinished and cannot be installed beside a current protobuf.
"""

import importlib
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np

from albert.checkpoints import CheckpointError
from albert.interop.folders import open_vocabulary, read_json
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
from albert.models.config import AlbertConfig

ACTIVATIONS = {"gelu": "gelu", "relu": "relu"}
CONFIG_NAME = "albert_config.json"
_SLOTS = ("adam_m", "adam_v")  # of both optimizers
_STEP = "global_step"
# Written into albert_config.json, where the released program ignores them, and read from there.
_LOWER, _STRIP, _LABELS, _HEADS = "do_lower_case", "strip_accents", "labels", "heads"
_MEANT = ("kind", "threshold")  # fields of heads that the released program has no place for
_HUB = "module/"  # in front of every name in exports for a hub

_IN_LAYER = {
    "attention/query": "attention_1/self/query",
    "attention/key": "attention_1/self/key",
    "attention/value": "attention_1/self/value",
    "attention/output": "attention_1/output/dense",
    "attention_layer_norm": "LayerNorm",
    "intermediate": "ffn_1/intermediate/dense",
    "output": "ffn_1/intermediate/output/dense",
    "output_layer_norm": "LayerNorm_1",
}
_ELSEWHERE = {
    "embeddings": "bert/embeddings",
    "embeddings/layer_norm": "bert/embeddings/LayerNorm",
    "encoder/embedding_hidden_mapping_in": "bert/encoder/embedding_hidden_mapping_in",
    "pooler": "bert/pooler/dense",
    "mlm_head": "cls/predictions",
    "mlm_head/transform": "cls/predictions/transform/dense",
    "mlm_head/layer_norm": "cls/predictions/transform/LayerNorm",
    "sop_head": "cls/seq_relationship/",
    "classifier_head": "",
    "span_head": "cls/squad/",
    "conditional_span_head/start": "start_logits/dense",
    "conditional_span_head/end_pairs": "end_logits/dense_0",
    "conditional_span_head/end_layer_norm": "end_logits/LayerNorm",
    "conditional_span_head/end": "end_logits/dense_1",
    "conditional_span_head/answer_pairs": "answer_class/dense_0",
    "conditional_span_head/answer": "answer_class/dense_1",
}


def name_of(path: str) -> tuple[str, bool]:
    """The released name of a parameter, and whether it is stored transposed."""
    module, leaf = path.rsplit("/", 1)
    if module in ("sop_head", "classifier_head", "span_head"):
        return f"{_ELSEWHERE[module]}output_{'weights' if leaf == 'kernel' else leaf}", True
    if module.endswith("layer_norm"):
        leaf = {"scale": "gamma", "bias": "beta"}[leaf]
    if match := re.fullmatch(r"encoder/group_(\d+)/layer_(\d+)/(.*)", module):
        group, inner, rest = match.groups()
        within = f"group_{group}/inner_group_{inner}/{_IN_LAYER[rest]}"
        return f"bert/encoder/transformer/{within}/{leaf}", False
    return f"{_ELSEWHERE[module]}/{leaf}", False


def find_prefix(path: Path) -> Path | None:
    """The checkpoint that `path` means: a prefix, one of its files, or a folder; None: it is none.

    Raises CheckpointError when a folder holds several and no `checkpoint` file that chooses.
    """
    if not path.is_dir():
        prefix = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path)))
        return prefix if Path(f"{prefix}.index").is_file() else None
    folder = path if any(path.glob("*.index")) else path / "variables"
    found = sorted(p.with_suffix("") for p in folder.glob("*.index"))
    state = folder / "checkpoint"
    if len(found) > 1 and state.is_file():
        chosen = re.search(
            r'^model_checkpoint_path: "(.*)"', state.read_text(errors="replace"), re.MULTILINE
        )
        named = chosen and folder / Path(chosen[1]).name
        if named in found:
            return named
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds several checkpoints; name one of {', '.join(str(p) for p in found)}."
        )
    return found[0] if found else None


def read(prefix: Path, with_moments: bool = False, vocabulary: Path | None = None) -> Weights:
    """A checkpoint with the `albert_config.json` beside it.

    Args:
      prefix: the path up to ".index".
      with_moments: read the optimizer's slots as well, if there are any.
      vocabulary: the .model file; None looks beside the checkpoint.

    Raises:
      CheckpointError: something is missing, damaged or does not fit; names it.
    """
    config_path = _beside(prefix, CONFIG_NAME)
    if not config_path:
        raise CheckpointError(
            f"There is no {CONFIG_NAME} beside {prefix}. The release has one for each model; copy "
            "it there."
        )
    config = read_config(config_path, ACTIVATIONS)
    options = read_json(config_path)
    tf = _tensorflow()
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {name: tuple(s) for name, s in reader.get_variable_to_shape_map().items()}
    except Exception as error:  # TensorFlow raises many kinds
        raise _damaged(prefix, error) from error

    def get(name: str) -> np.ndarray:
        try:
            return reader.get_tensor(stored[name])
        except Exception as error:
            raise _damaged(f"{prefix}, variable {stored[name]}", error) from error

    stored = {name.removeprefix(_HUB): name for name in shapes}
    shapes = {name: shapes[whole] for name, whole in stored.items()}
    classifier = shapes.get("output_weights") if "output_bias" in shapes else None
    heads = sentence_head(options, config_path) or dict(PRETRAINED)
    if classifier:
        pretrained = any(name.startswith("cls/") for name in shapes)
        heads = (heads if pretrained else {}) | {
            "classifier": {
                "labels": classifier[0],
                "kind": "classes" if classifier[0] > 1 else "number",
            }
        }
    if "cls/squad/output_weights" in shapes:
        heads = {"span": {}}
    elif "answer_class/dense_1/kernel" in shapes:
        heads = {"conditional_span": {}}
    # What the released program has no place for.
    meant = options.get(_HEADS, {})
    heads = {head: {**fields, **meant.get(head, {})} for head, fields in heads.items()}
    wanted = entries(config, name_of, heads)
    weights = Weights(config, take(wanted, shapes, get, prefix, config_path), heads=heads)
    weights.labels = tuple(options.get(_LABELS, ()))
    present = [entry for entry in wanted if entry.path in weights.params]
    weights.names = {entry.path: stored[entry.name] for entry in present}
    used = {entry.name for entry in present}
    if _STEP in shapes:
        weights.step = int(get(_STEP))
        used.add(_STEP)
    slots = [f"{e.name}/{slot}" for e in present for slot in _SLOTS]
    lacking = [name for name in slots if name not in shapes]
    if lacking and len(lacking) < len(slots):
        weights.notes.append(
            f"optimizer slots left out: {len(lacking)} of {len(slots)} are missing, "
            f"{lacking[0]} among them"
        )
    elif lacking:
        weights.notes.append("no optimizer slots")
    else:
        used.update(slots)
        if with_moments:
            weights.mu, weights.nu = (
                {e.path: e.read(get(f"{e.name}/{slot}")) for e in present} for slot in _SLOTS
            )
        else:
            weights.notes.append("optimizer slots are there and were not read")
    weights.left_over = sorted(stored[name] for name in shapes.keys() - used)
    vocabulary = vocabulary or _beside(prefix, "*.model")
    if vocabulary:
        # The released program knows one flag, on its command line, and always strips accents.
        weights.tokenizer = open_vocabulary(
            vocabulary, bool(options.get(_LOWER, True)), bool(options.get(_STRIP, True))
        )
    return weights


def write(weights: Weights, folder: Path) -> dict[str, str]:
    """Writes `model.ckpt-STEP`, `albert_config.json` and the vocabulary; returns path -> name.

    Raises CheckpointError when the released program cannot run such a model.
    """
    config = weights.config
    if config.maps_embeddings and config.embedding_size == config.hidden_size:
        raise CheckpointError(
            "The released program has no mapping of the embeddings where embedding_size is "
            "hidden_size, and this model does (encoder/embedding_hidden_mapping_in)."
        )
    if config.hidden_act not in ACTIVATIONS.values():
        raise CheckpointError(
            f"The released program has no activation {config.hidden_act}; it has "
            f"{', '.join(ACTIVATIONS)}."
        )
    if "tokens" in weights.heads:
        raise CheckpointError("The released program has no head that labels tokens.")
    heads, said = heads_elsewhere(weights.heads)
    written = {**released_config(config), **said}
    tf = _tensorflow()
    present = [e for e in entries(config, name_of, heads) if e.path in weights.params]
    # One file for the variables and one for each slot, so that only one of them is copied at once.
    shards = [("", weights.params)]
    if weights.mu is not None and weights.nu is not None:
        shards += [(f"/{_SLOTS[0]}", weights.mu), (f"/{_SLOTS[1]}", weights.nu)]
    stem = f"model.ckpt-{weights.step or 0}"
    prefixes: list[str] = []
    for suffix, values in shards:
        tensors = {entry.name + suffix: entry.write(values[entry.path]) for entry in present}
        if weights.step is not None and not suffix:
            tensors[_STEP] = np.asarray(weights.step, np.int64)
        order = sorted(tensors)
        prefixes.append(str(folder / f"shard-{len(prefixes)}"))
        with tf.device("CPU"):
            tf.raw_ops.SaveV2(
                prefix=prefixes[-1],
                tensor_names=order,
                shape_and_slices=[""] * len(order),
                tensors=[tensors[name] for name in order],
            )
    with tf.device("CPU"):
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=prefixes, destination_prefix=str(folder / stem)
        )
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{stem}"\n')
    if weights.tokenizer:
        weights.tokenizer.save(folder / "tokenizer.model")
        written |= {_LOWER: weights.tokenizer.lower_case, _STRIP: weights.tokenizer.strip_accents}
    if weights.labels:
        written[_LABELS] = weights.labels
    meant = {
        head: {name: fields[name] for name in _MEANT if name in fields}
        for head, fields in heads.items()
    }
    if meant := {head: fields for head, fields in meant.items() if fields}:
        written[_HEADS] = meant
    (folder / CONFIG_NAME).write_text(json.dumps(written, indent=2) + "\n")
    return {entry.path: entry.name for entry in present}


def released_config(config: AlbertConfig) -> dict:
    """The contents of `albert_config.json`; raises CheckpointError for sharing it has not."""
    ours = (
        "sharing",
        "per_layer_norm",
        "lora_rank",
        "map_equal_embeddings",
        "dtype",
        "param_dtype",
        "attention",
        "scan_unroll",
        "least_depth",
        "positions",
        "remat",
    )
    values = {name: value for name, value in vars(config).items() if name not in ours}
    return {"num_hidden_groups": released_groups(config, "The released program"), **values}


def _beside(prefix: Path, pattern: str) -> Path | None:
    """A file in the checkpoint's folder, or where exports for a hub keep theirs."""
    for folder in (prefix.parent, prefix.parent / "assets", prefix.parent.parent / "assets"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise CheckpointError(
                f"There are several vocabularies beside {prefix}; name one of "
                f"{', '.join(map(str, found))}."
            )
        if found:
            return found[0]
    return None


def _damaged(where: str | Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().split("\n")[0][:300]
    return CheckpointError(
        f"{where} cannot be read: it is damaged, cut off or not a TensorFlow checkpoint ({reason})."
    )


def _tensorflow():
    # While it is imported: it would log what it is made of, and that oneDNN is on.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
    ours = {name: value for name, value in quiet.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            tf = importlib.import_module("tensorflow")
    except ImportError as error:
        raise CheckpointError(
            "Checkpoints of the released program are read and written with TensorFlow, which is "
            f"not installed ({error}). Install it with: pip install -r requirements-original.txt"
        ) from error
    finally:
        for name in ours:
            del os.environ[name]
    # The accelerators are jax's.
    tf.config.set_visible_devices([], "GPU")
    return tf
