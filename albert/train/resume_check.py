"""Whether a run that is to go on is the one that was saved."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from albert.data.pretraining.prepare import PreparedData, changed_corpora
from albert.runtime import RunError
from albert.train.config import Config

# Told by the identity of the data, or past: where a run started.
_NOT_COMPARED = ("seed", "init_from", "init_optimizer", "init_method")
# Of the model and yet harmless: what is computed is the same up to rounding.
_NUMERICS = ("model.dtype", "model.remat")
# Harmless and yet not exact: what is learned differs from here on.
_LEARNING = ("optimizer", "train.max_bad_steps", "train.spike_factor", "train.num_steps")


def describe_run(config: Config, data: PreparedData) -> dict:
    """What a checkpoint says of its run, as JSON."""
    held_out = [plan.corpus.fingerprint for plan in data.valid.plans]
    found = {"config": dataclasses.asdict(config), "data": data.identity, "held_out": held_out}
    return json.loads(json.dumps(found))


def check_same_run(
    saved: dict, config: Config, data: PreparedData, workdir: Path, say: Callable[[str], None]
) -> None:
    """Refuses to go on with another model or other rows; tells of any other change.

    Raises RunError with every value that may not change.
    """
    now = describe_run(config, data)

    def changes(name: str, before: dict, after: dict) -> list[str]:
        return [
            f"  {name}.{field}: {before.get(field)} -> {after.get(field)}"
            for field in sorted(before.keys() | after.keys())
            if before.get(field) != after.get(field)
        ]

    refused = changes("data", saved["data"], now["data"])
    refused += changed_corpora(config.data, saved["data"]["train"], data.train)
    warned: list[str] = []
    told: list[str] = []
    if saved["held_out"] != now["held_out"]:
        warned.append("  held-out text: figures before and after do not compare")
    for section, fields in now["config"].items():
        if section in _NOT_COMPARED:
            continue
        for line in changes(section, saved["config"].get(section, {}), fields):
            field = line.split(":")[0].strip()
            # A row's number is step * batch_size + its place in the batch.
            if (section == "model" and field not in _NUMERICS) or field == "train.batch_size":
                refused.append(line)
            elif field.startswith(_LEARNING) or section == "model":
                warned.append(line)
            else:
                told.append(line)
    if refused:
        raise RunError(
            f"The checkpoints in {workdir} come from another run:\n"
            + "\n".join(refused)
            + "\nGo back to these values, or start a new run in another --workdir."
        )
    if warned:
        say(
            "Warning: from here on the run learns or is judged otherwise, since this was changed:\n"
            + "\n".join(warned)
        )
    if told:
        say("Changed since the checkpoint was written:\n" + "\n".join(told))
