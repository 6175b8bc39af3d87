"""Folders of this project's own runs, and of models saved in the same form: the newest or one
named checkpoint, and the vocabulary beside it."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.checkpoints import CheckpointError
from albert.interop.folders import open_vocabulary
from albert.interop.weights import (
    PRETRAINED,
    Weights,
    entries,
    stacked,
    take,
    unstacked,
)
from albert.models.config import AlbertConfig, model_from_json
from albert.runtime.fields import ConfigError
from albert.runtime.paths import resolved

if TYPE_CHECKING:
    from albert.checkpoints.store import Checkpoints

CHECKPOINTS, VOCABULARY = "checkpoints", "tokenizer.model"
BEST_REPORT = "eval_best.json"  # figures of the best checkpoint, where that is what is served


def is_workdir(path: Path) -> bool:
    """Whether `path` is a run's folder or one checkpoint in it."""
    path = resolved(path)
    return (path / CHECKPOINTS).is_dir() or _is_checkpoint(path)


def is_run(info: dict) -> bool:
    """Whether a checkpoint's description is that of a run, and not of a model alone."""
    return "train" in info["config"]


def served(checkpoints: "Checkpoints") -> int:
    """The checkpoint that stands for a run: its best one where the run's task says so, else its
    newest. Raises CheckpointError when there is none."""
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"{checkpoints.folder} holds no finished checkpoint yet.")
    best = checkpoints.from_the_best()
    return best[0] if best and checkpoints.info(steps[-1]).get("serves_best") else steps[-1]


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and path.name.isdecimal() and path.parent.name == CHECKPOINTS


def read(path: Path, with_moments: bool = False, vocabulary: Path | None = None) -> Weights:
    """A run's newest checkpoint, or the one that `path` is.

    Raises CheckpointError when there is none or it cannot be read.
    """
    from albert.checkpoints.store import Checkpoints  # Orbax is for workdirs alone

    path = resolved(path)
    workdir = path.parent.parent if _is_checkpoint(path) else path
    with contextlib.closing(Checkpoints(workdir / CHECKPOINTS)) as checkpoints:
        step = int(path.name) if _is_checkpoint(path) else served(checkpoints)
        try:
            return _read(workdir, checkpoints, step, with_moments, vocabulary)
        except CheckpointError:
            if _is_checkpoint(path) or (checkpoints.folder / str(step)).is_dir():
                raise
    # A run that is still going has removed it since: take the newest that there is now.
    return read(path, with_moments, vocabulary)


def _read(
    workdir: Path,
    checkpoints: "Checkpoints",
    step: int,
    with_moments: bool,
    vocabulary: Path | None,
) -> Weights:
    where = checkpoints.folder / str(step)
    info = checkpoints.info(step)
    try:
        config = model_from_json(info["config"]["model"])
        text = info["config"]["data"]
        flags = bool(text["lower_case"]), bool(text["strip_accents"])
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The description in {where / 'info'} is not one this version can read: {error}"
        ) from error
    stored = flatten_dict(checkpoints.restore_arrays(step, "params"), sep="/")
    try:
        params = unstacked(config, stored)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    shapes = {name: value.shape for name, value in params.items()}
    heads = info.get("heads", PRETRAINED)
    evaluated = info.get("progress", {}).get("evaluated", {}).get("dev", {})
    if "conditional_span" in heads and "threshold" in evaluated:
        heads["conditional_span"]["threshold"] = evaluated["threshold"]
    wanted = entries(config, lambda path: (path, False), heads)
    # Nothing is merged or transposed in our own files.
    wanted = [dataclasses.replace(entry, matrix=entry.ours) for entry in wanted]
    taken = take(wanted, shapes, params.__getitem__, where, "its config")
    weights = Weights(config, taken, names={path: path for path in taken}, heads=heads)
    weights.labels = tuple(info.get("labels", ()))
    weights.left_over = sorted(params.keys() - taken.keys())
    if not checkpoints.has_training(step):
        weights.step = info.get("step")
        weights.notes.append("no optimizer slots")
    elif with_moments:
        training = checkpoints.restore_arrays(step, "training")
        weights.step = int(training["step"]) - int(training["bad_steps"])
        shapes = {path: value.shape for path, value in stored.items()}
        weights.mu, weights.nu = (
            _find(config, training["opt_state"], name, shapes) for name in ("mu", "nu")
        )
        if weights.mu is None or weights.nu is None:
            weights.mu = weights.nu = None
            weights.notes.append(
                "the run's optimizer has no two moments of every parameter: left out"
            )
    else:
        weights.step = step
        weights.notes.append("optimizer slots are there and were not read")
    if vocabulary or (workdir / VOCABULARY).is_file():
        weights.tokenizer = open_vocabulary(vocabulary or workdir / VOCABULARY, *flags)
    return weights


def _find(
    config: AlbertConfig, tree, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
    """The subtree of an optimizer's state that has this name and a number for every number of the
    parameters; None where there is none, or one number for a whole tensor."""
    if isinstance(tree, dict):
        if isinstance(tree.get(name), dict):
            flat = {
                path: _stack(value) for path, value in flatten_dict(tree[name], sep="/").items()
            }
            if {path: value.shape for path, value in flat.items()} == shapes:
                return unstacked(config, flat)
        children = list(tree.values())
    else:
        children = list(tree) if isinstance(tree, (list, tuple)) else []
    found = (_find(config, child, name, shapes) for child in children)
    return next((moments for moments in found if moments is not None), None)


def _stack(value) -> np.ndarray:
    """A leaf as one array; an optimizer may hold the tensors of a stack one by one."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, np.ndarray) for x in value):
        same = len({x.shape for x in value}) == 1
        return np.stack(value) if same else np.empty(0)
    return value if isinstance(value, np.ndarray) else np.empty(0)


def write(weights: Weights, folder: Path) -> dict[str, str]:
    """Writes a workdir with one checkpoint; returns path -> path."""
    from albert.checkpoints.store import Checkpoints

    tokenizer = weights.tokenizer
    training = None
    if weights.mu is not None and weights.nu is not None:
        training = {
            "step": np.asarray(weights.step or 0, np.int32),
            "bad_steps": np.asarray(0, np.int32),
            "opt_state": {
                name: unflatten_dict(stacked(weights.config, values), sep="/")
                for name, values in (("mu", weights.mu), ("nu", weights.nu))
            },
        }
    flags = {
        "lower_case": tokenizer.lower_case if tokenizer else True,
        "strip_accents": tokenizer.strip_accents if tokenizer else True,
    }
    info = {
        "config": {"model": dataclasses.asdict(weights.config), "data": flags},
        "step": weights.step,
        "heads": weights.heads,
        "labels": weights.labels,
    }
    with contextlib.closing(Checkpoints(folder / CHECKPOINTS, create=True)) as checkpoints:
        checkpoints.save(weights.step or 0, weights.tree, training, info, None)
        checkpoints.wait()
    if tokenizer:
        tokenizer.save(folder / VOCABULARY)
    return {path: path for path in weights.params}
