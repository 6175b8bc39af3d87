"""Models to export, inputs for what was exported, and what JAX makes of them."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import albert
from albert.export import interface
from albert.interop.weights import Weights, parameter_shapes
from albert.train.evaluate import Options
from albert.train.evaluate_program import MODEL, evaluate_program
from models import TINY

SIZES = {"num_hidden_layers": 4, "max_position_embeddings": 64}
SHARINGS = [
    {"sharing": sharing}
    for sharing in ("all", "none", "attention", "ffn", "sandwich", "groups:2", "cycle_reversed:3")
]
VARIANTS = [
    *SHARINGS,
    {"inner_group_num": 2, "hidden_act": "relu"},
    {"per_layer_norm": True, "hidden_act": "gelu_erf"},
    {"sharing": "groups:2", "lora_rank": 3, "embedding_size": 16},
    {"sharing": "groups:2", "positions": "rotary"},
]


def tuned(heads, labels=(), spread=0.2, **changes) -> Weights:
    """Random weights of a model with other heads."""
    config = dataclasses.replace(TINY, **{**SIZES, **changes})
    rng = np.random.default_rng(1)
    params = {
        path: rng.normal(path.endswith("scale"), spread, shape).astype(np.float32)
        for path, shape in parameter_shapes(config, heads).items()
    }
    return Weights(config, params, heads=heads, labels=labels)


def rows(count, length, vocab=50, seed=3):
    """The INPUTS: tokens, then padding from somewhere on, in two segments."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, count)
    lengths[0] = length
    place = np.arange(length)
    return [
        rng.integers(0, vocab, (count, length)).astype(np.int32),
        (place < lengths[:, None]).astype(np.int32),
        (place >= lengths[:, None] // 2).astype(np.int32),
    ]


def by_jax(model, inputs):
    params = unflatten_dict(model.params, sep="/")
    return jax.jit(interface.function(model))(params, *inputs)


HEADS = [
    ({"classifier": {"labels": 3, "kind": "classes"}}, "classifier"),
    ({"classifier": {"labels": 1, "kind": "choice"}}, "classifier"),
    ({"tokens": {"labels": 5}}, "tokens"),
    ({"span": {}}, "span"),
    ({"conditional_span": {}}, "conditional_span"),
]


def read_lines(folder) -> str:
    """The Python of a folder's README."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]


def assert_its_program_is_judged_alike(run, folder):
    """A run's program in float32 has the figures of its model."""
    pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    albert.load(run).export(folder)
    judged = evaluate_program(run, None, folder, Options())
    assert judged["float32"].keys() == judged[MODEL].keys()
    for split, figures in judged[MODEL].items():
        assert judged["float32"][split] == pytest.approx(figures, abs=2e-5, nan_ok=True)
