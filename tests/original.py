"""The released program's golden runs, in this project's parameter names and shapes."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from albert.interop.original import ACTIVATIONS, CONFIG_NAME, name_of
from albert.interop.weights import entries, read_config, stacked
from albert.models.config import AlbertConfig

GOLDEN = Path(__file__).parent / "golden"
RUNS = ("shared_lamb", "groups_adamw")


def load_config(run: str) -> AlbertConfig:
    return read_config(GOLDEN / run / CONFIG_NAME, ACTIVATIONS)


def load_run(run: str) -> dict:
    return json.loads((GOLDEN / run / "run.json").read_text())


def load_arrays(run: str, name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / run / name) as file:
        return dict(file)


def our_tree(variables: dict[str, np.ndarray], config: AlbertConfig) -> dict:
    """Variables of the released program as our nested parameter tree."""
    found = {e.path: e.read(variables[e.name]) for e in entries(config, name_of)}
    assert len(found) == len(variables)
    return unflatten_dict(stacked(config, found), sep="/")
