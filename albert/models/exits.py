"""When a row has gone through enough layers: rules of early exit, for a model with a classifier on
every depth.

  patience:K      K depths in a row gave the same answer as the one before (Zhou et al. 2020, PABEE,
                  arXiv 2006.04152); of a number patience:K:T, where answers that differ by less
                  than T are the same
  confidence:P    the answer has a probability of at least P; of several labels, each of them, for
                  or against it
  depth:D         after D layers, whatever they gave
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

RULES = ("patience", "confidence", "depth")


@dataclasses.dataclass(frozen=True)
class Exit:
    """When a row leaves; as text it is one of the forms above."""

    rule: str  # of RULES
    value: float  # K, P or D
    tolerance: float | None = None  # T

    def __str__(self) -> str:
        more = "" if self.tolerance is None else f":{self.tolerance:g}"
        return f"{self.rule}:{self.value:g}{more}"


class Seen(NamedTuple):
    """What is known of rows after some depths."""

    logits: jax.Array  # float32 [B, labels]: of the last depth, or of the one where a row has left
    same: jax.Array  # int32 [B]: so many depths in a row have given the same answer again
    depth: jax.Array  # int32 [B]: layers that a row took so far
    left: jax.Array  # bool [B]


def parse(text: str) -> Exit:
    """Raises ValueError for a text of another form."""
    rule, *numbers = str(text).split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    most = 2 if rule == "patience" else 1
    right = rule in RULES and 1 <= len(values) <= most and all(map(math.isfinite, values))
    if not right or (rule != "confidence" and values[0] != int(values[0])):
        raise ValueError(
            f"exit is {text!r}; it must be patience:K (of a number patience:K:T), confidence:P or "
            "depth:D, with whole numbers K and D"
        )
    return Exit(rule, *values)


def problem(exit: Exit, kind: str, depth: int) -> str | None:
    """Why a model cannot be left so, as a sentence; None: it can.

    Args:
      kind: what its classifier tells; of `kinds.KINDS`.
      depth: its layers.
    """
    if exit.rule == "patience" and not 1 <= exit.value < depth:
        return (
            f"exit is {exit}; the patience must be from 1 to {depth - 1}: of {depth} layers no "
            "more than that can agree with the one before"
        )
    if exit.rule == "depth" and not 1 <= exit.value <= depth:
        return f"exit is {exit}; the model has the depths 1 to {depth}"
    if exit.rule == "confidence" and kind == "number":
        return (
            f"exit is {exit} and the model gives a number, which has no probability; it can be "
            "left by patience:K:T or depth:D"
        )
    if exit.rule == "confidence" and not 0 < exit.value <= 1:
        return f"exit is {exit}; a confidence must be over 0 and at most 1"
    needs = kind == "number" and exit.rule == "patience"
    if needs and (exit.tolerance is None or exit.tolerance <= 0):
        return (
            f"exit is {exit} and the model gives a number: say by less than what two of them may "
            f"differ to be the same, such as patience:{exit.value:g}:0.1"
        )
    if exit.tolerance is not None and not needs:
        return f"exit is {exit}; a tolerance is for models that give a number"
    return None


def look(exit: Exit, kind: str, seen: Seen, depth, logits) -> Seen:
    """What is known after one depth more.

    Args:
      kind: of `kinds.KINDS`.
      depth: of these logits, int [], from 0.
      logits: float32 [B, labels].
    """
    same = jnp.where((depth > 0) & _same(kind, seen.logits, logits, exit), seen.same + 1, 0)
    if exit.rule == "patience":
        leaves = same >= exit.value
    elif exit.rule == "confidence":
        leaves = _confidence(kind, logits) >= exit.value
    else:
        leaves = jnp.full(seen.left.shape, depth + 1 >= exit.value)
    return Seen(
        jnp.where(seen.left[:, None], seen.logits, logits),
        same,
        jnp.where(seen.left, seen.depth, jnp.int32(depth + 1)),
        seen.left | leaves,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def leave(exit: Exit, kind: str, logits) -> tuple[jax.Array, jax.Array]:
    """Where rows leave of which all depths are known.

    Args:
      logits: float32 [n, N, labels].

    Returns:
      float32 [n, labels], what they get, and int32 [n], after how many layers.
    """
    rows, depths, labels = logits.shape
    zeros = jnp.zeros(rows, jnp.int32)
    seen = Seen(jnp.zeros((rows, labels), jnp.float32), zeros, zeros, zeros > 0)
    for depth in range(depths):
        seen = look(exit, kind, seen, depth, logits[:, depth])
    return seen.logits, seen.depth


def _same(kind: str, before, logits, exit: Exit):
    """bool [B]: whether two depths give the same answer."""
    if kind == "number":
        if exit.tolerance is None:
            return jnp.zeros(logits.shape[0], bool)
        return jnp.abs(before - logits)[:, 0] < exit.tolerance
    if kind == "several":
        return ((before > 0) == (logits > 0)).all(-1)
    return before.argmax(-1) == logits.argmax(-1)


def _confidence(kind: str, logits):
    """float32 [B]: the probability of the answer."""
    if kind == "several":
        return jax.nn.sigmoid(jnp.abs(logits)).min(-1)
    return jax.nn.softmax(logits).max(-1)
