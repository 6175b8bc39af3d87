"""Which layer uses which set of weights: every strategy behind `model.sharing`.

A strategy is two tables, one for the attention block of a layer and one for its feed-forward block,
each with its LayerNorm behind it: table[l] is the number of the set that layer l uses. Nothing else
in the package knows the strategies by name.

Sources: Lan et al. 2019, Table 4 (all, attention, ffn, none); the released program's
num_hidden_groups (groups); Takase and Kiyono 2021, arXiv 2104.06022 (cycle, cycle_reversed; their
"sequence" is groups); Reid et al. 2021, Subformer, arXiv 2101.00234 (sandwich); Bae et al. 2024,
arXiv 2410.20672 (low-rank differences).
"""

import re

# Leaves that `per_layer_norm` gives to every depth.
_SMALL = re.compile("layer_norm|bias")
# The factors of a low-rank difference; always of one depth alone.
LOW_RANK = ("lora_a", "lora_b")

Table = tuple[int, ...]


def _one(steps: int) -> Table:
    return (0,) * steps


def _own(steps: int) -> Table:
    return tuple(range(steps))


def _consecutive(steps: int, groups: int) -> Table:
    # The released program computes int(l / N * G) in floating point; integers give the same groups
    # wherever that has no rounding error.
    return tuple(step * groups // steps for step in range(steps))


def _cycle(steps: int, sets: int) -> Table:
    return tuple(step % sets for step in range(steps))


def _cycle_reversed(steps: int, sets: int) -> Table:
    """As `_cycle`, but the last time through, whole or not, from the last set backwards."""
    turn = (-(-steps // sets) - 1) * sets
    return tuple(
        step % sets if step < turn or step < sets else sets - 1 - step % sets
        for step in range(steps)
    )


def _sandwich(steps: int) -> Table:
    return (0, *(1,) * (steps - 2), 2)


# name -> (attention's table, feed-forward's); of the number of steps.
_PLAIN = {
    "all": (_one, _one),
    "none": (_own, _own),
    "attention": (_one, _own),
    "ffn": (_own, _one),
    "sandwich": (_sandwich, _sandwich),
}
# Of the number of steps and of sets, which stands behind a colon.
_COUNTED = {"groups": _consecutive, "cycle": _cycle, "cycle_reversed": _cycle_reversed}
LEGAL = ", ".join([*_PLAIN, "groups:G", "cycle:M", "cycle_reversed:M"])


def _parsed(sharing: str) -> tuple[str, int]:
    """Name and number of sets, 0 for a strategy without one, -1 for what is no number."""
    name, colon, count = sharing.partition(":")
    if not colon:
        return name, 0
    return name, int(count) if count.isdecimal() else -1


def problems(sharing: str, steps: int) -> list[str]:
    """What is wrong with a strategy for so many steps, one sentence each."""
    name, count = _parsed(sharing)
    if name not in (_COUNTED if ":" in sharing else _PLAIN):
        return [f"sharing is {sharing!r}; it must be one of {LEGAL}"]
    if ":" in sharing and not 1 <= count <= steps:
        return [
            f"sharing is {sharing!r}; the number behind {name} must be from 1 to "
            f"num_hidden_layers, {steps}: more sets would never be used"
        ]
    if name == "sandwich" and steps < 3:
        return [f"sharing is 'sandwich'; it needs num_hidden_layers of 3 or more, not {steps}"]
    return []


def uneven_groups(sharing: str, steps: int) -> list[str]:
    """A sentence where groups are not of one length, which released models may have."""
    name, count = _parsed(sharing)
    if name != "groups" or count < 1 or steps % count == 0:
        return []
    legal = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
    return [
        f"sharing is {sharing!r}; the number of groups must divide num_hidden_layers, {steps}: "
        f"one of {legal}"
    ]


def tables(sharing: str, steps: int, inner: int) -> tuple[Table, Table]:
    """The sets of the attention and of the feed-forward blocks, one number for each layer.

    Args:
      sharing: a strategy without problems.
      steps: num_hidden_layers.
      inner: inner_group_num, layers in a set, applied one after the other at every step.

    Returns:
      Two tables of `steps * inner` numbers, each counting from 0 without a gap.
    """
    name, count = _parsed(sharing)
    chosen = (
        (_COUNTED[name](steps, count),) * 2
        if name in _COUNTED
        else tuple(function(steps) for function in _PLAIN[name])
    )
    attention, ffn = (tuple(s * inner + i for s in table for i in range(inner)) for table in chosen)
    return attention, ffn


def num_groups(sharing: str, steps: int) -> int | None:
    """num_hidden_groups of the released program; None where it has no such sharing."""
    name, count = _parsed(sharing)
    return {"all": 1, "none": steps, "groups": count}.get(name)


def of_groups(groups: int, steps: int) -> str:
    """The strategy that num_hidden_groups means."""
    return "all" if groups == 1 else "none" if groups == steps else f"groups:{groups}"


def is_attention(leaf: str) -> bool:
    """Whether a parameter of a layer, such as "attention/query/kernel", is of its attention."""
    return leaf.startswith("attention")


def is_of_one_depth(leaf: str, per_layer_norm: bool) -> bool:
    """Whether every depth has this parameter of a layer for itself, whatever the strategy."""
    return leaf.endswith(LOW_RANK) or (per_layer_norm and _SMALL.search(leaf) is not None)
