"""Config files: finding them from any working folder, and reading one with fields changed.

Importing this costs little; what checks a config is imported when one is checked.
"""

import importlib.util
import os
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from albert.runtime.fields import ConfigError, unknown

if TYPE_CHECKING:
    from albert.train.config import Config

_FOLDER = "configs"


def find_config(path: str) -> str:
    """The config file that a user names, its argument behind a colon kept.

    `configs/NAME.py` that is not below the working folder is looked for where the project's own
    configs are; a path that is nowhere comes back as it is.
    """
    file, colon, argument = os.path.expanduser(path).partition(":")
    folder, _, name = file.partition("/")
    if not os.path.exists(file) and folder == _FOLDER and name:
        spec = importlib.util.find_spec(_FOLDER)
        for place in (spec and spec.submodule_search_locations) or ():
            if os.path.isfile(os.path.join(place, name)):
                return os.path.join(place, name) + colon + argument
    return file + colon + argument


def read_config(
    path: str | os.PathLike, overrides: Mapping[str, Any], needs_text: bool = True
) -> "Config":
    """The checked config of a file, with `overrides` by dotted names or as nested dicts.

    `needs_text`: as of `check`.

    Raises ConfigError with everything that is wrong.
    """
    from albert.train.config import check

    file, _, argument = find_config(os.fspath(path)).partition(":")
    if not Path(file).is_file():
        raise ConfigError([f"There is no config file {file} below {Path.cwd()}"])
    try:
        program = runpy.run_path(file)
        if "get_config" not in program:
            raise ConfigError([f"{file} has no function get_config, which makes a config"])
        values = program["get_config"](argument).to_dict()
    except ConfigError:
        raise
    except Exception as error:  # it is the user's program
        raise ConfigError([f"{file} fails with {type(error).__name__}: {error}"]) from error
    problems: list[str] = []
    _override(values, overrides, "", problems)
    checked = None
    try:
        checked = check(values, needs_text)
    except ConfigError as error:
        problems += error.problems
    if checked is None or problems:
        raise ConfigError(problems)
    return checked


def _override(values: dict, overrides: Mapping[str, Any], prefix: str, problems: list[str]) -> None:
    """Sets fields in nested dicts; appends a sentence for each that is not there."""
    for name, value in overrides.items():
        first, dot, rest = str(name).partition(".")
        if first not in values:
            problems.append(unknown(prefix + first, first, values))
        elif dot or isinstance(value, Mapping):
            if isinstance(values[first], dict):
                inner = {rest: value} if dot else value
                _override(values[first], inner, f"{prefix}{first}.", problems)
            else:
                problems.append(f"{prefix}{first} is a field and not a section of fields")
        elif isinstance(values[first], dict):
            problems.append(
                f"{prefix}{first} is a section; set one of its fields, such as "
                f"{prefix}{first}.{next(iter(values[first]))}"
            )
        else:
            values[first] = _plain(value)


def _plain(value):
    """Paths as text and lists as tuples, which is what fields are made of."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
