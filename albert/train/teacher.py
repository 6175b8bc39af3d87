"""The teacher of a run: the model that `config.distillation.teacher` names."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from albert.checkpoints import CheckpointError
from albert.interop import formats
from albert.interop.weights import PRETRAINED, Weights, stacked
from albert.models.encoder import Albert, abstract_params
from albert.runtime.digests import arrays_digest
from albert.runtime.fields import ConfigError
from albert.runtime.paths import place
from albert.tasks import find_task
from albert.tasks.base import Task
from albert.tasks.distillation import Distillation
from albert.train.config import Config, check_devices
from albert.train.init_from import OWN
from albert.train.sharding import ShardingConfig
from albert.train.step import abstract_teacher


def read_teacher(config: Config) -> Weights:
    """The model to learn from. Touches no device.

    Raises:
      CheckpointError: it cannot be read.
      ConfigError: it cannot teach this task, whatever the data; names all reasons.
    """
    section, kind = config.distillation, find_task(config.task)
    path, head = section.teacher, kind.taught_head
    try:
        weights = formats.read(place(path))
    except CheckpointError as error:
        raise CheckpointError(f"distillation.teacher: {error}") from error
    problems = []
    heads = PRETRAINED | weights.heads
    if section.share and (head not in heads or f"{head}_head" in weights.missing):
        how = (
            "name a model that was pretrained with it"
            if head in PRETRAINED
            else f"fine-tune it first, on the same data: --config.init_from={path}"
        )
        problems.append(
            f"distillation.teacher, {path}, has no head {head}, whose logits are to be learned; "
            f"{how}. Or learn from its hidden states alone: --config.distillation.logits=0 "
            "--config.distillation.relations=1"
        )
    elif section.share and head == "classifier" and "pooler" in weights.missing:
        problems.append(
            f"distillation.teacher, {path}, has no pooler, on which its classifier stands; name a "
            "model that was saved whole"
        )
    positions, length = weights.config.max_position_embeddings, config.data.seq_length
    if length > positions:
        problems.append(
            f"data.seq_length is {length} and distillation.teacher, {path}, has {positions} "
            f"positions; set --config.data.seq_length={positions}"
        )
    theirs, ours = weights.config.type_vocab_size, min(config.model.type_vocab_size, 2)
    if theirs < ours:
        problems.append(
            f"distillation.teacher, {path}, knows {theirs} kind of segment (type_vocab_size) and "
            f"rows have {ours}"
        )
    parts = section.parts(config.model.num_attention_heads)
    if section.relation_weight:
        widths = {"model.hidden_size": config.model.hidden_size}
        widths[f"that of distillation.teacher, {path},"] = weights.config.hidden_size
        problems += [
            f"{name} is {width}, which is no multiple of distillation.relation_heads, {parts}"
            for name, width in widths.items()
            if width % parts
        ]
    if problems:
        raise ConfigError(problems)
    return weights


def teacher_model(config: Config, weights: Weights) -> Albert:
    """The teacher as the run computes it: in its dtype and with its attention kernel, without
    dropout, with the head that is taught where its logits are learned."""
    sizes = dataclasses.replace(
        weights.config,
        dtype=config.model.dtype,
        attention=config.model.attention,
        param_dtype="float32",
        remat="none",
        scan_unroll=1,
        least_depth=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    if not config.distillation.share:
        return Albert(sizes, ())
    head = find_task(config.task).taught_head
    fields = (PRETRAINED | weights.heads)[head]
    return Albert(sizes, (head,), {head: {k: v for k, v in fields.items() if k != "dropout"}})


def learn_from(weights: Weights, config: Config, task: Task, num_devices: int) -> None:
    """Has a task learn from a teacher: sets its `distillation`.

    Raises ConfigError where the teacher's vocabulary or labels are others than the task's, or the
    devices cannot hold it as `config.sharding` says.
    """
    section, path = config.distillation, config.distillation.teacher
    model = teacher_model(config, weights)
    problems = task.teacher_problems(config, weights)
    try:
        of_teacher = dataclasses.replace(config, model=model.config)
        check_devices(of_teacher, abstract_params(model), num_devices)
    except ConfigError as error:
        problems += [f"distillation.teacher, {path}: {text}" for text in error.problems]
    if problems:
        raise ConfigError(problems)
    task.distillation = Distillation(
        model,
        section.share,
        section.at_temperature,
        section.relation_weight,
        section.parts(config.model.num_attention_heads),
        _digest(model, weights),
    )


def teacher_params(model: Albert, weights: Weights, mesh: Mesh, sharding: ShardingConfig):
    """The teacher's parameters on the devices, never whole on one that holds a part."""
    values = _used(model, weights)

    def put(path: str, like) -> jax.Array:
        # Where no head needs it the pooler may be missing, which the encoder has all the same.
        is_left_out = path.startswith("pooler/") and path not in values
        value = np.zeros(like.shape, like.dtype) if is_left_out else values[path]
        return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])

    flat = flatten_dict(abstract_teacher(model, mesh, sharding), sep="/")
    return unflatten_dict({path: put(path, like) for path, like in flat.items()}, sep="/")


def opening_line(config: Config, task: Task, weights: Weights) -> str:
    """What a run says of its teacher."""
    section, of = config.distillation, task.distillation
    assert of is not None
    count = sum(int(value.size) for value in _used(of.model, weights).values())
    parts = []
    if of.share:
        what = f"soft labels at temperature {of.temperature:g}"
        parts.append(f"{what}, share {of.share:g}")
    if of.relations:
        what = f"relations of the last hidden states in {of.parts} parts"
        parts.append(f"{what}, weight {of.relations:g}")
    return f"Learning from {section.teacher}, {count:,} parameters: {'; '.join(parts)}."


def _used(model: Albert, weights: Weights) -> dict[str, np.ndarray]:
    """The teacher's tensors that its model has, by path."""
    wanted = flatten_dict(nn.meta.unbox(abstract_params(model)), sep="/")
    found = stacked(weights.config, weights.params)
    return {path: np.asarray(found[path], np.float32) for path in wanted if path in found}


def _digest(model: Albert, weights: Weights) -> str:
    """Digits that change with whatever changes what the teacher says."""
    sizes = dataclasses.asdict(weights.config)
    described = json.dumps({name: sizes[name] for name in sorted(sizes) if name not in OWN})
    return arrays_digest(_used(model, weights), described)
