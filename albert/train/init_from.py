"""Starting a run from another model: `config.init_from`."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.checkpoints import CheckpointError
from albert.interop import formats
from albert.interop.reshare import STRUCTURE, reshare, same_tensors
from albert.interop.weights import Weights, part_of, stacked
from albert.models.config import AlbertConfig, model_from_json
from albert.runtime.fields import ConfigError
from albert.runtime.paths import place
from albert.tasks import find_task
from albert.train.config import Config
from albert.train.optimizers import slot_of
from albert.train.step import TrainState

# Fields of the model that its parameters and their shapes follow from.
_SHAPES = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "positions",
    "type_vocab_size",
    "maps_embeddings",
)
# Fields that may change on purpose, and are told.
_TOLD = (*STRUCTURE, "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")
# Fields of the model that a run has of its own, whatever it starts from.
OWN = (
    "dtype",
    "param_dtype",
    "remat",
    "attention",
    "scan_unroll",
    "least_depth",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def resumed(config: Config, info: dict) -> Config:
    """The config of a run that is to be resumed, with the model that it began with where
    `config.init_model` took it from there. info: a checkpoint's description."""
    if not config.init_model:
        return config
    return _with_model(config, model_from_json(info["config"]["model"]))


def _with_model(config: Config, model: AlbertConfig) -> Config:
    own = {name: getattr(config.model, name) for name in OWN}
    return dataclasses.replace(config, model=dataclasses.replace(model, **own))


def read_start(config: Config) -> tuple[Config, Weights]:
    """The model that `config.init_from` names, with its optimizer if that is asked for, and the
    config, which has that model's sizes where `config.init_model` asks for it.

    Raises:
      CheckpointError: it cannot be read, or has no optimizer's state.
      ConfigError: its sizes or its vocabulary are not those of the config; names all of them.
    """
    path = config.init_from
    weights = formats.read(place(str(path)), with_moments=config.init_optimizer)
    if config.init_model:
        config = _with_model(config, weights.config)
    problems = []
    for field in _SHAPES:
        theirs, ours = getattr(weights.config, field), getattr(config.model, field)
        if theirs != ours:
            field = "map_equal_embeddings" if field == "maps_embeddings" else field
            problems.append(
                f"model.{field} is {ours} and that of init_from, {path}, {theirs}; "
                f"set --config.model.{field}={theirs}"
            )
    problems += find_task(config.task).start_problems(config, weights)
    same = not problems and same_tensors(weights.config, config.model)
    if config.init_optimizer and not problems and not same:
        problems.append(
            f"init_optimizer is True and the layers of init_from, {path}, share otherwise "
            f"({_structure(weights.config)}) than model ({_structure(config.model)}): moments "
            "belong to tensors. Set --config.init_optimizer=False"
        )
    if problems:
        raise ConfigError(problems)
    if not same:
        weights = reshare(weights, config.model, config.init_method)
    if config.init_optimizer:
        if weights.mu is None or weights.step is None:
            raise CheckpointError(
                f"{path} does not hold the optimizer's moments and step, which init_optimizer asks "
                f"for ({'; '.join(weights.notes) or 'no global_step'}). Set "
                "--config.init_optimizer=False to start from its weights alone."
            )
        if weights.step >= config.train.num_steps:
            raise ConfigError(
                [
                    f"train.num_steps is {config.train.num_steps} and init_from, {path}, has made "
                    f"{weights.step} steps already; raise train.num_steps"
                ]
            )
    return config, weights


def _structure(model: AlbertConfig) -> str:
    return ", ".join(f"{name} {getattr(model, name)}" for name in STRUCTURE)


def _describe(
    config: Config, weights: Weights, taken: set[str], drawn: set[str], left: Sequence[str]
) -> str:
    """What is taken and what is not, for people. taken, drawn: tensors of the new model."""
    with_optimizer = (
        f"with the optimizer's moments, at step {weights.step}"
        if config.init_optimizer
        else "without an optimizer's state, at step 0"
    )
    lines = [f"Starting from {config.init_from}: {len(taken)} tensors {with_optimizer}."]
    if drawn:
        parts = sorted({part_of(path) for path in drawn})
        lines.append(f"  Initialised anew, {len(drawn)} tensors: {', '.join(parts)}.")
    if left:
        lines.append(f"  Of no use here and left out: {', '.join(left)}.")
    if weights.left_over:
        shown = ", ".join(weights.left_over[:5])
        more = len(weights.left_over) - 5
        lines.append(f"  Left over there: {shown}{f' and {more} more' if more > 0 else ''}.")
    lines += [f"  {note[0].upper()}{note[1:]}." for note in weights.notes]
    lines += [f"  {weights.vocabulary_note}"] if weights.vocabulary_note else []
    for field in _TOLD:
        theirs, ours = getattr(weights.config, field), getattr(config.model, field)
        if theirs != ours:
            lines.append(f"  model.{field} was {theirs} there and is {ours} here.")
    return "\n".join(lines)


def start_state(
    config: Config, weights: Weights, state: TrainState, without: Sequence[str] = ()
) -> tuple[TrainState, str]:
    """A fresh state with the values of `weights` in it, each where the fresh one lay, and lines
    that say what was taken and what was not.

    With `config.init_optimizer` the slots mu and nu and every counter are taken too; `check` has
    refused optimizers whose slots of these names hold something else.

    Args:
      without: parts of `weights` that are not taken, such as "classifier_head".
    """

    def filled(tree, values: dict[str, np.ndarray]):
        flat = flatten_dict(tree, sep="/")
        return unflatten_dict(
            {p: _placed(values[p], leaf) if p in values else leaf for p, leaf in flat.items()},
            sep="/",
        )

    theirs = {p: v for p, v in weights.params.items() if part_of(p) not in without}
    values = stacked(config.model, theirs)
    new = flatten_dict(state.params, sep="/").keys()
    idle = dict.fromkeys(part_of(p) for p in weights.params if p not in theirs)
    idle |= dict.fromkeys(part_of(p) for p in values.keys() - new)
    told = _describe(config, weights, new & values.keys(), new - values.keys(), sorted(idle))
    state = state.replace(params=filled(state.params, values))
    if not config.init_optimizer:
        return state, told
    assert weights.mu is not None
    assert weights.nu is not None
    moments = {
        "mu": stacked(config.model, weights.mu),
        "nu": stacked(config.model, weights.nu),
    }
    step = np.asarray(weights.step)

    # Every counter is an array of its own: the state is donated to the training step.
    def taken(path, leaf):
        name, parameter = slot_of(path)
        if name == "count":
            return _placed(step, leaf)
        known = name in moments and parameter in moments[name]
        return _placed(moments[name][parameter], leaf) if known else leaf

    opt_state = jax.tree_util.tree_map_with_path(taken, state.opt_state)
    return state.replace(opt_state=opt_state, step=_placed(step, state.step)), told


def _placed(value: np.ndarray, like: jax.Array) -> jax.Array:
    """`value` in the dtype and on the devices of `like`."""
    value = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
