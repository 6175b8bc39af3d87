"""Equality with numbers printed by the released TensorFlow 1.15 program (float32, CPU)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import original
from albert.models.encoder import Albert
from albert.tasks.pretraining import apply_model, masked_lm_terms
from albert.train.optimizers import make_optimizer
from optimizers import LAMB
from steps import pretraining_of

# Compiled as for users, which other programs of the tests are not: the bounds are for that.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "3"})


def load_batch(arrays):
    return {
        "input_ids": arrays["input_ids"],
        "attention_mask": arrays["input_mask"],
        "token_type_ids": arrays["segment_ids"],
        "mlm_positions": arrays["masked_lm_positions"],
        "mlm_labels": arrays["masked_lm_ids"],
        "mlm_weights": arrays["masked_lm_weights"],
        "sop_labels": arrays["sentence_order_labels"][:, 0],
    }


@pytest.fixture(params=original.RUNS)
def run(request):
    return request.param


@pytest.fixture
def model_and_params(run):
    config = original.load_config(run)
    return Albert(config), original.our_tree(original.load_arrays(run, "initial.npz"), config)


def loss_of(model, params, batch, **kwargs):
    task = pretraining_of(model.config)
    sums, denominators = task.sums(params, batch, None), task.denominators(batch)
    output = apply_model(model, params, batch, **kwargs)
    return task.loss(sums, denominators), (output, task.metrics(sums, denominators))


def test_forward(run, model_and_params):
    model, params = model_and_params
    golden = original.load_arrays(run, "forward.npz")
    batch = load_batch(golden)
    run_model = compiled(lambda p: loss_of(model, p, batch, output_hidden_states=True))
    loss, (output, metrics) = run_model(params)
    nll, _ = masked_lm_terms(
        output.mlm_logits, batch["mlm_labels"], np.ones_like(batch["mlm_weights"])
    )
    word = params["embeddings"]["word_embeddings"][batch["input_ids"]]
    embedded = model.bind({"params": params}).trunk.embeddings(
        batch["input_ids"], batch["token_type_ids"]
    )
    pairs = {
        "word_embedding_output": word,
        "embedding_output": embedded,
        "sequence_output": output.last_hidden_state,
        "pooled_output": output.pooled_output,
        "masked_lm_log_probs": jax.nn.log_softmax(output.mlm_logits).reshape(
            golden["masked_lm_log_probs"].shape
        ),
        "masked_lm_example_loss": nll.reshape(-1),
        "sentence_order_log_probs": jax.nn.log_softmax(output.sop_logits),
        "masked_lm_loss": metrics["mlm_loss"],
        "sentence_order_loss": metrics["sop_loss"],
        "total_loss": loss,
    }
    depth = model.config.num_hidden_layers * model.config.inner_group_num
    for layer in range(depth):
        pairs[f"layer_{layer}"] = output.hidden_states[layer + 1]
    assert f"layer_{depth}" not in golden
    for name, ours in pairs.items():
        np.testing.assert_allclose(ours, golden[name], atol=2e-5, rtol=0, err_msg=name)


def test_gradients(run, model_and_params):
    model, params = model_and_params
    batch = load_batch(original.load_arrays(run, "forward.npz"))
    ours = compiled(jax.grad(lambda p: loss_of(model, p, batch)[0]))(params)
    golden = original.our_tree(original.load_arrays(run, "gradients.npz"), model.config)
    ours, golden = flatten_dict(ours, sep="/"), flatten_dict(golden, sep="/")
    assert ours.keys() == golden.keys()
    for path, gradient in golden.items():
        difference = np.linalg.norm(ours[path] - gradient)
        # A key bias has a gradient of exactly 0 in theory: compare with float32 noise there.
        assert difference <= 1e-4 * np.linalg.norm(gradient) + 1e-7, path


def sparse_gradient_norm(model, params, batch, grads):
    """The global norm that the released program's clip computes on CPU and GPU.

    There the gradient of the token-type table is a list of slices, one per token, whose squares
    are added without summing the tokens of a type first. On TPU, where the released models were
    trained, the lookup is a one-hot product and its gradient dense, as it is here.
    """
    # A table with one row per token has the slices as its gradient.
    types = batch["token_type_ids"]
    per_token = jax.tree.map(jnp.asarray, params)
    per_token["embeddings"]["token_type_embeddings"] = params["embeddings"][
        "token_type_embeddings"
    ][types.reshape(-1)]
    model = Albert(dataclasses.replace(model.config, type_vocab_size=types.size))
    rows = {**batch, "token_type_ids": np.arange(types.size).reshape(types.shape)}
    slices = jax.grad(lambda p: loss_of(model, p, rows)[0])(per_token)
    squares = optax.tree.norm(grads, squared=True)
    squares -= jnp.sum(grads["embeddings"]["token_type_embeddings"] ** 2)
    return jnp.sqrt(squares + jnp.sum(slices["embeddings"]["token_type_embeddings"] ** 2))


def released_training(run, model):
    """The optimizer of a golden run, and its step (params, opt_state) -> the same and the loss."""
    facts = original.load_run(run)
    batch = load_batch(original.load_arrays(run, "forward.npz"))
    optimizer, schedule = make_optimizer(
        dataclasses.replace(
            LAMB,  # what is unset in it is the released program's
            name=facts["optimizer"],
            learning_rate=facts["learning_rate"],
            warmup_steps=facts["num_warmup_steps"],
            clip_norm=0.0,  # clipped below, by the norm that program took on CPU
        ),
        facts["num_train_steps"],
    )

    @compiled
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(lambda p: loss_of(model, p, batch)[0])(params)
        norm = sparse_gradient_norm(model, params, batch, grads)
        grads = jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return optimizer, schedule, step


def assert_golden(run, k, params, config):
    golden = original.our_tree(original.load_arrays(run, f"params_after_{k}.npz"), config)
    ours = flatten_dict(params, sep="/")
    for path, value in flatten_dict(golden, sep="/").items():
        np.testing.assert_allclose(ours[path], value, atol=2e-5, rtol=0, err_msg=f"{k} {path}")


def test_optimizer_steps(run, model_and_params):
    model, params = model_and_params
    optimizer, _, step = released_training(run, model)
    params = jax.tree.map(jnp.asarray, params)
    opt_state = optimizer.init(params)
    for k, golden_loss in enumerate(original.load_run(run)["loss_before_step"], 1):
        params, opt_state, loss = step(params, opt_state)
        np.testing.assert_allclose(loss, golden_loss, atol=1e-4, rtol=0)
        if k in (1, 2, 3, 8):
            assert_golden(run, k, params, model.config)
    assert k == 8
