"""Frozen dataclasses from plain values, with everything that is wrong told at once."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence


class ConfigError(ValueError):
    """A config is wrong; the message lists every problem."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(
            "\n".join(
                [f"{len(self.problems)} {noun} in the config:"]
                + [f"  - {problem}" for problem in self.problems]
            )
        )


def build(
    cls,
    values: Mapping,
    prefix: str,
    problems: list[str],
    kinds: Mapping[str, typing.Any] | None = None,
):
    """An instance of a dataclass whose fields are plain values, tuples or dataclasses.

    Args:
      cls: the dataclass; a field that may be unset is `KIND | None`.
      values: field -> value.
      prefix: stands in front of field names in messages, such as "model.".
      problems: gets a sentence for everything that is wrong.
      kinds: types of fields, rather than those of the dataclass.

    Returns:
      The instance, or None when something was wrong.
    """
    hints = typing.get_type_hints(cls) | dict(kinds or {})
    before = len(problems)
    problems += [unknown(prefix + name, name, hints) for name in values if name not in hints]
    built = {}
    for name, kind in hints.items():
        if name not in values:
            problems.append(f"{prefix}{name} is missing; see configs/default.py for what it says")
        elif dataclasses.is_dataclass(kind):
            if isinstance(values[name], Mapping) or hasattr(values[name], "items"):
                built[name] = build(kind, values[name], f"{prefix}{name}.", problems)
            else:
                problems.append(f"{prefix}{name} is {values[name]!r}; it must be a section")
        elif is_float(kind) and isinstance(values[name], float) and not math.isfinite(values[name]):
            problems.append(f"{prefix}{name} is {values[name]}; it must be finite")
        elif matches(values[name], kind):
            whole = is_float(kind) and values[name] is not None
            built[name] = float(values[name]) if whole else values[name]
        else:
            problems.append(wrong_type(prefix + name, values[name], kind))
    return cls(**built) if len(problems) == before else None


def unknown(path: str, name: str, hints) -> str:
    """The sentence about a field that is not there."""
    close = difflib.get_close_matches(name, hints, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(hints)}"
    return f"{path} is not a field; {hint}"


def is_float(kind) -> bool:
    return kind is float or (float in typing.get_args(kind) and type(None) in typing.get_args(kind))


def matches(value, kind) -> bool:
    """Whether a value is of a field's type; a whole number is a float too."""
    if type(None) in typing.get_args(kind):
        return value is None or any(matches(value, k) for k in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(matches(x, inner[0]) for x in value)
        return len(value) == len(inner) and all(map(matches, value, inner))
    if kind is Mapping:
        return isinstance(value, Mapping)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def wrong_type(path: str, value, kind) -> str:
    """The sentence about a value of another type."""
    expected = kind.__name__ if isinstance(kind, type) and kind.__module__ == "builtins" else kind
    text = str(expected) if typing.get_origin(kind) is not tuple else str(kind)
    return f"{path} is {value!r}, a {type(value).__name__}; it must be of type {text}"
