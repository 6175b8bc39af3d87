"""Training steps of tiny models on made-up rows."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from albert.models.config import AlbertConfig
from albert.tasks.pretraining import Pretraining
from albert.train.config import check
from albert.train.optimizers import make_optimizer
from albert.train.sharding import batch_sharding, make_mesh, mesh_over, put_batch
from albert.train.step import make_train_step, new_state, shard_training
from models import TINY
from optimizers import LAMB

PLAIN = dataclasses.replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def pretraining_of(model: AlbertConfig, sentence_objective="sop") -> Pretraining:
    """The pure functions of pretraining, without data."""
    data = SimpleNamespace(sentence_objective=sentence_objective, workers=0)
    return Pretraining(SimpleNamespace(model=model, data=data))


def loss_and_metrics(task, params, batch, keys=None):
    """Of a whole batch."""
    sums, denominators = task.sums(params, batch, keys), task.denominators(batch)
    return task.loss(sums, denominators), task.metrics(sums, denominators)


def random_batch(rows=8, length=12, predictions=4, vocab=50, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, predictions + 1, rows)
    positions = np.zeros((rows, predictions), np.int32)
    for row, count in enumerate(counts):
        positions[row, :count] = np.sort(rng.choice(np.arange(1, length), count, replace=False))
    ids = rng.integers(5, vocab, (rows, length)).astype(np.int32)
    weights = (np.arange(predictions) < counts[:, None]).astype(np.float32)
    labels = np.take_along_axis(ids, positions, 1) * weights.astype(np.int32)
    return {
        "input_ids": ids,
        "token_type_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
        "attention_mask": np.ones((rows, length), np.int32),
        "mlm_positions": positions,
        "mlm_labels": labels,
        "mlm_weights": weights,
        "sop_labels": rng.integers(0, 2, rows).astype(np.int32),
    }


def make(config=PLAIN, accumulation=1, **changes):
    """A fresh state of a tiny model, and its compiled step."""
    optimizer, schedule = make_optimizer(dataclasses.replace(LAMB, **changes), 100)
    task = pretraining_of(config)
    state = nn.meta.unbox(new_state(partial(task.init, task.model), optimizer, 0))
    return state, jax.jit(make_train_step(task, optimizer, schedule, accumulation, 0))


def abstract_batch(config) -> dict:
    """Shapes and dtypes of a config's batch, not packed."""
    rows = config.train.batch_size
    tokens = jax.ShapeDtypeStruct((rows, config.data.seq_length), jnp.int32)
    targets = jax.ShapeDtypeStruct((rows, config.data.max_predictions), jnp.int32)
    return {
        "input_ids": tokens,
        "token_type_ids": tokens,
        "attention_mask": tokens,
        "mlm_positions": targets,
        "mlm_labels": targets,
        "mlm_weights": jax.ShapeDtypeStruct(targets.shape, jnp.float32),
        "sop_labels": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }


def configured(tiny, accumulation=1, **mesh):
    tiny.model.vocab_size = 96
    tiny.train.accumulation = accumulation
    tiny.optimizer.learning_rate = 0.01
    return dataclasses.replace(
        check(tiny), sharding=dataclasses.replace(check(tiny).sharding, **mesh)
    )


def losses(config, devices=8, steps=20):
    """Losses of a run with dropout on, the way the loop sets it up."""
    task = pretraining_of(config.model)
    optimizer, schedule = make_optimizer(config.optimizer, steps)
    if devices == 8:
        mesh = make_mesh(config.sharding)
    else:
        mesh = mesh_over(jax.devices()[:1], (1, 1, 1, 1))
    _, create, step = shard_training(
        task, optimizer, schedule, config.train.accumulation, 0, mesh, config.sharding
    )
    state = create()
    rows = batch_sharding(mesh, config.sharding)
    with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
        batches = [
            put_batch(random_batch(rows=16, length=32, predictions=6, vocab=96, seed=n), rows)
            for n in range(steps)
        ]
        compiled = step.lower(state, batches[0]).compile()
        found = []
        for batch in batches:
            state, metrics = compiled(state, batch)
            found.append(float(metrics["loss"]))
    return np.array(found), state, compiled.as_text()
