"""What an exported model takes and gives, whatever its format: inputs, outputs by name, and the
function of JAX that every format is held to."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from albert.checkpoints import CheckpointError
from albert.interop.exported import CONDITIONAL
from albert.interop.weights import OPTIONAL_PARTS, Weights, part_of, predicting_pieces, stacked
from albert.models import exits
from albert.models.config import AlbertConfig
from albert.models.encoder import Albert
from albert.models.heads import outside_of_paragraph, pool

# Beside the logits of a model that is left early: how many layers each row took, int [B].
EXIT_DEPTH = "exit_depth"
SMALLEST_NORM = 1e-12  # of a row without any token

# Of every format, int [B, L] each; [B, C, L] where a model chooses among C options.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Head(NamedTuple):
    """What can be asked of an exported model."""

    outputs: tuple[str, ...]  # names that Optimum and transformers.js know, where they have one
    parts: tuple[str, ...]  # of the model that it is computed from, beside the encoder
    says: str


@dataclasses.dataclass(frozen=True)
class Options:
    """How a program is written; a format names those that it reads in its OPTIONS.

    Attributes:
      fused: with operators that ONNX Runtime alone has.
      per_token: of int8: a scale of activations for each token, not for each tensor.
      weight_bits: of int8 in ONNX: 7, or 8 for ARM and x86 with VNNI alone; elsewhere 8 saturate.
      lengths: of rows, where shapes are fixed, from the shortest on; none: the format's own.
      batch: rows of a call, where shapes are fixed.
    """

    fused: bool = False
    per_token: bool = False
    weight_bits: int = 7
    lengths: tuple[int, ...] = ()
    batch: int = 1

    @property
    def set(self) -> list[str]:
        """The names of those that are not what they are by default."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]


HEADS = {
    "hidden": Head(("last_hidden_state",), (), "the encoder's states, [B, L, H]"),
    "sentence": Head(("sentence_embedding",), (), "a vector of length 1, [B, H]"),
    "mlm": Head(("logits",), ("mlm_head",), "scores of every piece at every place, [B, L, V]"),
    "sop": Head(("sop_logits",), ("pooler", "sop_head"), "in order or swapped, [B, 2]"),
    "classifier": Head(
        ("logits",),
        ("pooler", "classifier_head"),
        "scores of the labels, [B, labels]; of a model that chooses, of the options, [B, C]",
    ),
    "tokens": Head(("logits",), ("tokens_head",), "scores of the labels, [B, L, labels]"),
    "span": Head(
        ("start_logits", "end_logits"), ("span_head",), "where an answer starts and ends, [B, L]"
    ),
    "conditional_span": Head(
        tuple(CONDITIONAL),
        ("conditional_span_head",),
        "the likeliest S starts, [B, S], for each the likeliest S ends, [B, S * S], start by "
        "start, and what speaks for no answer, [B]; S is 5, or L where that is less",
    ),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as it is exported.

    Attributes:
      config: in float32, without what matters to training alone.
      params: flat, "encoder/layers/output/kernel" and so on; layers as stacks with one entry for
        each set of weights; what the heads do not need is not in it.
      heads: keys of HEADS, in the order of the outputs.
      fields: of the model's own heads, by name.
      choices: whether rows come as [B, C, L].
      pooling: of `heads.POOLING`: what a sentence's vector is of.
      exit: when a row leaves; None: behind the last layer.
    """

    config: AlbertConfig
    params: dict[str, Any]
    heads: tuple[str, ...]
    fields: Mapping[str, Mapping[str, Any]]
    choices: bool
    pooling: str
    exit: exits.Exit | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        names = tuple(name for head in self.heads for name in HEADS[head].outputs)
        return names if self.exit is None else (*names, EXIT_DEPTH)


def asked(weights: Weights, heads: tuple[str, ...] = (), exit: str | None = None) -> Model:
    """The model of these weights with the heads that are asked for.

    Args:
      exit: when a row leaves, as `albert.models.exits` has it; None: behind the last layer.
      heads: keys of HEADS; none: what the model was trained for, which is the head that it was
        fine-tuned with, or else mlm, or else, where it has no head, hidden.

    Raises CheckpointError: a head is not known, not in these weights, or two give the same output;
    or the model cannot be left so.
    """
    own = [
        head for head in HEADS if head in weights.heads and f"{head}_head" not in weights.missing
    ]
    if not heads:
        tuned = [head for head in own if head not in ("mlm", "sop")]
        heads = tuple(tuned or [head for head in own if head == "mlm"] or ["hidden"])
    pooling = weights.heads.get("sentence", {}).get("pooling", "mean")
    needed = set()
    for head in heads:
        if head not in HEADS:
            raise CheckpointError(f"There is no head {head!r}; there is {', '.join(HEADS)}.")
        parts = ("pooler",) if (head, pooling) == ("sentence", "pooled") else HEADS[head].parts
        needed |= {*parts}
        lacking = [part for part in parts if part in weights.missing]
        if lacking or (HEADS[head].parts and head not in weights.heads):
            raise CheckpointError(
                f"The model has no {' and no '.join(lacking) or head + '_head'}, which the head "
                f"{head!r} needs; it can give {', '.join([*own, 'hidden', 'sentence'])}."
            )
    names = [name for head in heads for name in HEADS[head].outputs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CheckpointError(
            f"The heads {', '.join(heads)} name an output alike, {twice[0]}: export them to two "
            "folders."
        )
    fields = weights.heads
    choices = "classifier" in heads and fields["classifier"].get("kind") == "choice"
    if choices and len(heads) > 1:
        raise CheckpointError(
            "The head of a model that chooses among options takes rows of its own; export it alone."
        )
    rule = None if exit is None else _rule(weights, heads, exit)
    config = dataclasses.replace(
        weights.config,
        dtype="float32",
        param_dtype="float32",
        remat="none",
        attention="xla",
        scan_unroll=1,
    )
    if rule is not None:
        needed.add("exits_head")
    params = {
        path: value
        for path, value in stacked(config, predicting_pieces(weights)).items()
        if part_of(path) not in OPTIONAL_PARTS or part_of(path) in needed
    }
    return Model(config, params, heads, fields, choices, pooling, rule)


def _rule(weights: Weights, heads: tuple[str, ...], text: str) -> exits.Exit:
    """Raises CheckpointError."""
    if "exits" not in weights.heads or "exits_head" in weights.missing:
        raise CheckpointError(
            f"exit is {text!r} and the model has no classifiers on the depths before the last: "
            "fine-tune it with data.exits=together, or this model itself with data.exits=frozen."
        )
    if heads != ("classifier",):
        raise CheckpointError(
            f"exit is {text!r} and the heads are {', '.join(heads)}: of rows that leave early "
            "there is what the classifier says, and nothing else. Ask for --heads=classifier alone."
        )
    try:
        rule = exits.parse(text)
    except ValueError as error:
        raise CheckpointError(f"{error}.") from error
    kind = weights.heads["classifier"]["kind"]
    if found := exits.problem(rule, kind, weights.config.depth):
        raise CheckpointError(f"{found}.")
    return rule


def function(model: Model) -> Callable[..., dict[str, jax.Array]]:
    """What every format computes: (params as a tree, the INPUTS as int32) -> outputs by name."""
    modules = tuple(head for head in model.heads if HEADS[head].parts)
    if model.exit is not None:
        modules = (*modules, "exits")
    albert = Albert(model.config, modules, {name: model.fields[name] for name in modules})

    def outputs(params, input_ids, attention_mask, token_type_ids):
        options = input_ids.shape[1]
        rows = [input_ids, attention_mask, token_type_ids]
        if model.choices:
            rows = [row.reshape(-1, row.shape[-1]) for row in rows]
        if model.exit is not None:
            results: Any = albert.apply({"params": params}, *rows, model.exit, method="leave")
            return dict(zip(model.outputs, results, strict=True))
        # The module has a pooler, whose result is then not used.
        width = model.config.hidden_size
        pooler = {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)}
        asked = {}
        if "conditional_span" in model.heads:
            asked = {"conditional_span": {"mask": outside_of_paragraph(*rows[1:])}}
        every = {"params": {"pooler": pooler} | params}
        found: Any = albert.apply(every, *rows, head_inputs=asked)
        results = []
        for head in model.heads:
            if head == "hidden":
                results.append(found.last_hidden_state)
            elif head == "sentence":
                hidden, pooled = found.last_hidden_state, found.pooled_output
                vector = pool(model.pooling, hidden, pooled, rows[1])
                norm = jnp.linalg.norm(vector, axis=-1, keepdims=True)
                results.append(vector / jnp.maximum(norm, SMALLEST_NORM))
            elif head == "span":
                results += [found.logits[head][..., 0], found.logits[head][..., 1]]
            elif head == "conditional_span":
                results += [found.logits[head][name] for name in CONDITIONAL.values()]
            elif model.choices:
                results.append(found.logits[head].reshape(-1, options))
            else:
                results.append(found.logits[head])
        return dict(zip(model.outputs, results, strict=True))

    return outputs
