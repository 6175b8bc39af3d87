"""The released program's golden runs, in this project's parameter names and shapes."""

import json
import re
from pathlib import Path

import flax.traverse_util
import numpy as np

from albert.model import AlbertConfig

GOLDEN = Path(__file__).parent / "golden"
RUNS = ("shared_lamb", "groups_adamw")

_LAYER = re.compile(r"bert/encoder/transformer/group_(\d+)/inner_group_(\d+)/(.*)")
_IN_LAYER = {
    "attention_1/self/query": "attention/query",
    "attention_1/self/key": "attention/key",
    "attention_1/self/value": "attention/value",
    "attention_1/output/dense": "attention/output",
    "LayerNorm": "attention_layer_norm",
    "ffn_1/intermediate/dense": "intermediate",
    "ffn_1/intermediate/output/dense": "output",
    "LayerNorm_1": "output_layer_norm",
}
_ELSEWHERE = {
    "bert/embeddings/LayerNorm": "embeddings/layer_norm",
    "bert/embeddings": "embeddings",
    "bert/encoder/embedding_hidden_mapping_in": "encoder/embedding_hidden_mapping_in",
    "bert/pooler/dense": "pooler",
    "cls/predictions/transform/dense": "mlm_head/transform",
    "cls/predictions/transform/LayerNorm": "mlm_head/layer_norm",
    "cls/predictions": "mlm_head",
    "cls/seq_relationship": "sop_head",
}
_LEAF = {"gamma": "scale", "beta": "bias"}


def load_config(run: str) -> AlbertConfig:
    values = json.loads((GOLDEN / run / "albert_config.json").read_text())
    names = AlbertConfig.__dataclass_fields__
    return AlbertConfig(
        **{k: v for k, v in values.items() if k in names},
        dtype="float32",
        param_dtype="float32",
        remat="none",
    )


def load_run(run: str) -> dict:
    return json.loads((GOLDEN / run / "run.json").read_text())


def load_arrays(run: str, name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / run / name) as file:
        return dict(file)


def our_path(name: str) -> str:
    module, leaf = name.rsplit("/", 1)
    if module == "cls/seq_relationship":
        leaf = {"output_weights": "kernel", "output_bias": "bias"}[leaf]
    leaf = _LEAF.get(leaf, leaf)
    if match := _LAYER.fullmatch(module):
        group, inner, rest = match.groups()
        return f"encoder/group_{group}/layer_{inner}/{_IN_LAYER[rest]}/{leaf}"
    return f"{_ELSEWHERE[module]}/{leaf}"


def our_tree(variables: dict[str, np.ndarray], config: AlbertConfig) -> dict:
    """Variables of the released program as our nested parameter tree."""
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    flat = {}
    for name, value in variables.items():
        path = our_path(name)
        if path.startswith("sop_head/kernel"):
            value = value.T
        elif re.search("attention/(query|key|value)/", path):
            value = value.reshape(*value.shape[:-1], heads, width)
        elif path.endswith("attention/output/kernel"):
            value = value.reshape(heads, width, -1)
        flat[path] = value
    return flax.traverse_util.unflatten_dict(flat, sep="/")
