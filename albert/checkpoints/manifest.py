"""What a checkpoint is said to hold: the sums of its arrays, and the digests of its files."""

import json
from pathlib import Path

import jax
import numpy as np

from albert.checkpoints.checksums import array_sums, host_sums, leaf_names
from albert.runtime.digests import file_digest, text_digest
from albert.runtime.paths import files_below

NAME = "manifest.json"
# What Orbax writes last of all in a store, where folders have their names from the beginning.
COMMITTED = "commit_success.txt"
# Times and names that Orbax writes last of all into a step's folder; nothing here reads them.
_UNREAD = ("_CHECKPOINT_METADATA", COMMITTED)
_MOST = 8  # problems that a sentence names


def describe(tree) -> dict[str, list]:
    """Leaf -> [dtype, shape, sum, sum], computed where the arrays lie."""
    leaves = leaf_names(tree)
    sums = np.asarray(jax.jit(array_sums)(tree))
    return {
        name: [str(leaf.dtype), list(leaf.shape), *map(int, pair)]
        for (name, leaf), pair in zip(leaves.items(), sums, strict=True)
    }


def describe_on_host(tree) -> dict[str, list]:
    """The same of NumPy arrays."""
    return {
        name: [str(leaf.dtype), list(leaf.shape), *host_sums(leaf)]
        for name, leaf in leaf_names(tree).items()
    }


def differences(saved: dict[str, list], found: dict[str, list]) -> list[str]:
    """Leaves whose descriptions differ, one phrase each."""
    return [
        f"{name} is {'damaged' if name in found and name in saved else 'missing or too many'}"
        for name in sorted(saved.keys() | found.keys())
        if saved.get(name) != found.get(name)
    ]


def misfits(saved: dict[str, list], like, item: str) -> list[str]:
    """Leaves that are missing, too many, or of another shape or dtype than the abstract arrays of
    `like`, one phrase each."""
    wanted = {n: (str(x.dtype), list(x.shape)) for n, x in leaf_names(like).items()}
    found = [f"{item}/{n} is missing" for n in sorted(wanted.keys() - saved.keys())]
    found += [f"{item}/{n} is too many" for n in sorted(saved.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & saved.keys()):
        dtype, shape = saved[name][:2]
        if (dtype, shape) != wanted[name]:
            found.append(
                f"{item}/{name} is {dtype} {shape} and should be {wanted[name][0]} "
                f"{wanted[name][1]}"
            )
    return found


def write(folder: Path, leaves: dict[str, dict]) -> None:
    """Writes the manifest of all that lies in a step's folder; `leaves`: item -> description."""
    manifest = {"leaves": leaves, "files": _digests(folder)}
    (folder / NAME).write_text(json.dumps(manifest | {"digest": _digest(manifest)}))


def read(folder: Path) -> tuple[dict, list[str]]:
    """The manifest of a step's folder, and what is wrong with the files in it, one phrase each."""
    try:
        text = (folder / NAME).read_text()
    except FileNotFoundError:
        if not any(folder.iterdir()):
            return {}, ["the folder is empty"]
        return {}, [f"it has no {NAME}: it was not finished, or is of an older version"]
    except (OSError, ValueError) as error:
        return {}, [f"{NAME} cannot be read: {error}"]
    try:
        manifest = json.loads(text)
        if manifest.pop("digest") != _digest(manifest):
            raise ValueError("its digest differs")
        there = _digests(folder)
    except (ValueError, KeyError, AttributeError) as error:
        return {}, [f"{NAME} is damaged: {error}"]
    except OSError as error:
        return {}, [f"{error.filename} cannot be read: {error.strerror}"]
    found = []
    for name, (size, digest) in sorted(manifest["files"].items()):
        if name not in there:
            found.append(f"{name} is missing")
        elif there[name][0] != size:
            found.append(f"{name} has {there[name][0]:,} bytes instead of {size:,}")
        elif there[name][1] != digest:
            found.append(f"{name} is damaged")
    extra = sorted(there.keys() - manifest["files"].keys())
    return manifest, found + [f"{name} does not belong there" for name in extra]


def named(problems: list[str]) -> str:
    """Problems as a part of a sentence."""
    more = len(problems) - _MOST
    return ", ".join(problems[:_MOST]) + (f", and {more} more" if more > 0 else "")


def _digests(folder: Path) -> dict[str, list]:
    """Every file below a folder -> [bytes, SHA-256], but those that nothing reads."""
    return {
        name: file_digest(path)
        for name, path in files_below(folder)
        if name not in (NAME, *_UNREAD)
    }


def _digest(manifest: dict) -> str:
    return text_digest(json.dumps(manifest, sort_keys=True))
