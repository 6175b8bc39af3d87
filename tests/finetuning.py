"""Tiny tasks to fine-tune on, and the released program's golden runs of fine-tuning."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from albert.interop.original import ACTIVATIONS, CONFIG_NAME, name_of
from albert.interop.weights import entries, read_config, stacked

GOLDEN = Path(__file__).parent / "golden" / "finetuning"
ENCODER = read_config(GOLDEN / "encoder" / CONFIG_NAME, ACTIVATIONS)


def encoder_variables() -> dict[str, np.ndarray]:
    """What all golden runs start from, by the released program's names."""
    with np.load(GOLDEN / "encoder" / "variables.npz") as file:
        return {name: file[name] for name in file.files if name != "global_step"}


def tree_of(variables: dict[str, np.ndarray], heads: dict[str, dict]) -> dict:
    """Variables of the released program as our nested parameter tree, of a model with heads."""
    found = {e.path: e.read(variables[e.name]) for e in entries(ENCODER, name_of, heads)}
    return unflatten_dict(stacked(ENCODER, found), sep="/")


def golden_run(kind: str, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(settings and losses, arrays) of a golden run, such as ("glue", "mnli")."""
    folder = GOLDEN / f"{kind}_runs"
    with np.load(folder / f"{name}.npz") as file:
        return json.loads((folder / "run.json").read_text())[name], dict(file)
