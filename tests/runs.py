"""What finished runs left behind, and how to compare it."""

import contextlib
import json

import jax

from albert.checkpoints.store import Checkpoints


def final_params(workdir, step):
    """The parameters of a checkpoint as they lie on disk."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        return checkpoints.restore_arrays(step, "params")


def assert_bit_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def records(workdir, group="train"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["group"] == group]
