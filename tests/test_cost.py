import dataclasses
from functools import partial

import flax.linen as nn
import jax
import pytest

from albert.models.encoder import Albert, abstract_params, init_params
from albert.tasks.pretraining import Pretraining
from albert.train.config import check
from albert.train.cost import activation_bytes, describe, parameters_by_part, state_bytes
from albert.train.optimizers import make_optimizer
from albert.train.step import make_train_step, new_state
from steps import abstract_batch


def test_parts_add_up_to_what_is_made(tiny):
    config = check(tiny)
    params = nn.meta.unbox(init_params(Albert(config.model), jax.random.key(0)))
    made = sum(leaf.size for leaf in jax.tree.leaves(params))
    parts = parameters_by_part(abstract_params(Albert(config.model)))
    assert sum(parts.values()) == made == describe(config)["parameters"]
    v, e, h, i = 96, 16, 32, 64
    assert parts["embeddings"] == (v + 64 + 2 + 2) * e
    assert parts["embedding_hidden_mapping_in"] == (e + 1) * h
    assert parts["layers"] == 4 * (h + 1) * h + (h + 1) * i + (i + 1) * h + 4 * h
    assert parts["pooler"] == (h + 1) * h
    assert parts["mlm_head"] == (h + 1) * e + 2 * e + v
    assert parts["sop_head"] == 2 * h + 2


def test_state_is_parameters_gradients_and_two_slots(tiny):
    config = check(tiny)
    sizes = state_bytes(config)
    assert sizes["parameters"] == sizes["gradients"] == 4 * describe(config)["parameters"]
    # Two float32 moments, and the step counters of optax.
    assert 0 <= sizes["optimizer"] - 2 * sizes["parameters"] <= 64


@pytest.mark.parametrize(
    ("remat", "dropout"),
    [
        ("dots", 0.1),
        *(
            pytest.param(remat, dropout, marks=pytest.mark.slow)
            for remat in ("none", "dots", "full")
            for dropout in (0.0, 0.1)
            if (remat, dropout) != ("dots", 0.1)
        ),
    ],
)
def test_activation_estimate_is_within_a_factor_of_two(tiny, remat, dropout):
    tiny.model.hidden_size, tiny.model.intermediate_size = 128, 512
    tiny.model.num_hidden_layers = 8
    tiny.model.max_position_embeddings = tiny.data.seq_length = 128
    tiny.data.max_predictions = 20
    tiny.model.hidden_dropout_prob = tiny.model.attention_probs_dropout_prob = dropout
    tiny.model.remat = remat
    config = check(tiny)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vocab_size=2000)
    )  # the vocabulary of the fixture is too small to see the logits
    task = Pretraining(config)
    optimizer, schedule = make_optimizer(config.optimizer, 10)
    state = nn.meta.unbox(
        jax.eval_shape(lambda: new_state(partial(task.init, task.model), optimizer, 0))
    )
    batch = abstract_batch(config)
    step = jax.jit(make_train_step(task, optimizer, schedule, 1, 0), donate_argnums=0)
    compiled = step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    assert 0.5 < activation_bytes(config) / compiled < 2
