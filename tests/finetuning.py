"""Tiny tasks to fine-tune on, and the released program's golden runs of fine-tuning."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.interop.original import ACTIVATIONS, CONFIG_NAME, name_of
from albert.interop.weights import (
    entries,
    part_of,
    read_config,
    stacked,
    unstacked,
)
from albert.train.optimizers import make_optimizer
from optimizers import LAMB
from runs import records, run_together

GOLDEN = Path(__file__).parent / "golden" / "finetuning"
# Names of a row's arrays there -> here.
FIELDS = {
    "input_ids": "input_ids",
    "input_mask": "attention_mask",
    "segment_ids": "token_type_ids",
}
# Compiled as for users, which other programs of the tests are not: the bounds are for that.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "3"})
ENCODER = read_config(GOLDEN / "encoder" / CONFIG_NAME, ACTIVATIONS)


def encoder_variables() -> dict[str, np.ndarray]:
    """What all golden runs start from, by the released program's names."""
    with np.load(GOLDEN / "encoder" / "variables.npz") as file:
        return {name: file[name] for name in file.files if name != "global_step"}


def tree_of(variables: dict[str, np.ndarray], heads: dict[str, dict]) -> dict:
    """Variables of the released program as our nested parameter tree, of a model with heads."""
    found = {e.path: e.read(variables[e.name]) for e in entries(ENCODER, name_of, heads)}
    return unflatten_dict(stacked(ENCODER, found), sep="/")


def golden_run(kind: str, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(settings and losses, arrays) of a golden run, such as ("glue", "mnli")."""
    folder = GOLDEN / f"{kind}_runs"
    with np.load(folder / f"{name}.npz") as file:
        settings = json.loads((folder / "run.json").read_text())
        return settings.get(name, settings), dict(file)


def check_devices(config, changes, folder):
    """Fine-tunes in bfloat16 and in parts, by one process with eight devices, by two with four
    each, and on a single device: with the same losses. Returns the workdirs."""
    changes = {"model.dtype": "bfloat16", "train.accumulation": 2, "train.log_every": 1} | changes
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    workdirs, losses = [], []
    for processes, devices in ((1, 8), (2, 8), (1, 1)):
        workdirs.append(folder / f"{processes}-of-{devices}")
        arguments = [sys.executable, "train.py", f"--config={config}", *flags]
        run_together([*arguments, f"--workdir={workdirs[-1]}"], processes, devices)
        losses.append([line["loss"] for line in records(workdirs[-1])])
    assert len(losses[0]) == 20
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    # All rows in one product are rounded otherwise; in float32 these agree to 1e-6.
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-2)
    return workdirs


def check_three_steps(task, kind, name, **more):
    """Holds logits, loss, gradient and three AdamW steps of a task equal to those of a golden run.

    `more`: fields of the batch beside tokens, labels and weights. Returns (logits, arrays).
    """
    run, arrays = golden_run(kind, name)
    heads = {head: dict(task.model.head_fields[head]) for head in task.model.heads}
    head = {n.removeprefix("head/"): v for n, v in arrays.items() if n.startswith("head/")}
    params = tree_of(encoder_variables() | head, heads)
    batch = {ours: arrays[f"in/{theirs}"] for theirs, ours in FIELDS.items()}
    labels = arrays["in/label_ids"]
    batch |= {"labels": labels, "weights": np.ones(len(labels), np.float32), **more}

    def loss_of(params):
        sums, denominators = task.sums(params, batch, None), task.denominators(batch)
        return task.loss(sums, denominators)

    logits = compiled(lambda p: task._logits(p, batch))(params)
    golden = arrays["out/logits"].reshape(logits.shape)
    np.testing.assert_allclose(logits, golden, atol=2e-5, rtol=0)
    check_updates(loss_of, params, run, arrays, heads)
    return logits, arrays


def check_updates(loss_of, params, run, arrays, heads, unused=()):
    """Holds a loss, its gradient and three AdamW steps equal to those of a golden run."""
    loss_and_gradient = compiled(jax.value_and_grad(loss_of))
    loss, gradient = loss_and_gradient(params)
    np.testing.assert_allclose(loss, arrays["out/loss"], atol=2e-5, rtol=2e-5)
    _check(gradient, heads, arrays, "grad", unused, relative=1e-4)
    config = dataclasses.replace(
        LAMB,
        name="adamw",
        learning_rate=run["learning_rate"],
        warmup_steps=run["num_warmup_steps"],
        clip_norm=run["clip"],
    )
    optimizer, schedule = make_optimizer(config, run["num_train_steps"], unused)
    state = optimizer.init(params)
    update = compiled(optimizer.update)
    for step in range(3):
        np.testing.assert_allclose(schedule(step), run["lr_used"][step], rtol=1e-6)
        loss, gradient = loss_and_gradient(params)
        np.testing.assert_allclose(loss, run["loss_before_step"][step], atol=2e-5, rtol=2e-5)
        updates, state = update(gradient, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    loss, _ = loss_and_gradient(params)
    np.testing.assert_allclose(loss, run["loss_after_3"], atol=2e-5, rtol=2e-5)
    _check(params, heads, arrays, "after3", (), absolute=2e-5)


def _check(tree, heads, arrays, group, without, relative=None, absolute=None):
    """Every variable of a group of golden arrays; of word embeddings the rows that are kept."""
    flat = unstacked(ENCODER, {k: np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()})
    seen = 0
    for entry in entries(ENCODER, name_of, heads):
        if part_of(entry.path) in without:
            assert not flat[entry.path].any(), entry.path
            continue
        golden = arrays[f"{group}/{entry.name}"]
        ours = entry.write(flat[entry.path])
        if entry.name.endswith("word_embeddings"):
            ours = ours[arrays["word_rows"]]
        if relative:
            # A key bias has a gradient of exactly 0 in theory: compare with float32 noise there.
            difference = np.linalg.norm(ours - golden)
            assert difference <= relative * np.linalg.norm(golden) + 1e-6, entry.name
        else:
            # A bias of all logits of a softmax has a gradient of 0 but for rounding, which Adam's
            # division makes into steps.
            gradient = arrays.get(f"grad/{entry.name}", golden)
            rounding = np.linalg.norm(gradient) < 1e-6
            bound = 1e-4 if rounding else absolute
            np.testing.assert_allclose(ours, golden, atol=bound, rtol=0, err_msg=entry.name)
        seen += 1
    assert seen == sum(name.startswith(f"{group}/") for name in arrays)
