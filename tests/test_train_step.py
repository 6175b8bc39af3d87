import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert.data.tokenizer import CLS, MASK, SEP
from albert.tasks.pretraining import (
    apply_model,
    evaluation_sums,
    figures,
    filled_masks,
    span_lengths,
)
from albert.train.optimizers import make_optimizer
from models import TINY
from optimizers import LAMB
from steps import PLAIN, make, pretraining_of, random_batch


@pytest.mark.parametrize("parts", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8))])
def test_accumulation_equals_the_large_batch(parts):
    batch = random_batch()
    whole_state, whole = make()[1](make()[0], batch)
    parts_state, split = make(accumulation=parts)[1](make()[0], batch)
    for name in whole:
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-5, err_msg=name)
    for ours, theirs in zip(
        jax.tree.leaves(parts_state), jax.tree.leaves(whole_state), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_but_counters():
    state, step = make()
    state, _ = step(state, random_batch())
    broken = random_batch(seed=1)
    broken["mlm_weights"] = broken["mlm_weights"] * np.float32(np.nan)
    after, metrics = step(state, broken)
    for old, new in zip(
        jax.tree.leaves((state.params, state.opt_state)),
        jax.tree.leaves((after.params, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    assert (int(after.step), int(after.bad_steps), int(after.bad_steps_in_row)) == (2, 1, 1)
    assert metrics["update_norm"] == 0
    again, metrics = step(after, broken)
    assert (int(again.bad_steps), int(again.bad_steps_in_row)) == (2, 2)
    good, metrics = step(again, random_batch(seed=2))
    assert (int(good.bad_steps), int(good.bad_steps_in_row)) == (2, 0)
    # The schedule counts updates that were made.
    _, expected = make_optimizer(LAMB, 100)
    np.testing.assert_allclose(metrics["learning_rate"], expected(1), rtol=1e-6)


def test_dropout_depends_on_step_and_seed():
    state, step = make(TINY)
    batch = random_batch()
    losses = [float(step(state.replace(step=jnp.int32(k)), batch)[1]["loss"]) for k in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_a_batch_without_targets_or_labels_gives_zero():
    state, step = make()
    batch = random_batch()
    batch["mlm_weights"] = np.zeros_like(batch["mlm_weights"])
    batch["sop_labels"] = np.full_like(batch["sop_labels"], -1)
    after, metrics = step(state, batch)
    assert metrics["loss"] == metrics["grad_norm"] == 0
    assert int(after.bad_steps) == 0


def test_span_lengths_by_brute_force():
    batch = random_batch(rows=64, length=12, predictions=6, seed=3)
    ours = np.asarray(span_lengths(batch["mlm_positions"], batch["mlm_weights"]))
    for row in range(64):
        chosen = batch["mlm_positions"][row][batch["mlm_weights"][row] > 0].tolist()
        for k, position in enumerate(chosen):
            first = last = position
            while first - 1 in chosen:
                first -= 1
            while last + 1 in chosen:
                last += 1
            assert ours[row, k] == last - first + 1
        assert not ours[row, len(chosen) :].any()


def test_eval_figures_by_brute_force():
    task = pretraining_of(PLAIN)
    model = task.model
    state, _ = make()
    batch = random_batch(rows=6, seed=4)
    shown = batch["input_ids"].copy()
    shown[:, 0], shown[:, -1] = CLS, SEP
    hidden = {}
    for row in range(6):
        for k, (position, weight) in enumerate(
            zip(batch["mlm_positions"][row], batch["mlm_weights"][row], strict=True)
        ):
            if weight:
                kind = ("mask", "unchanged", "random")[(row + k) % 3]
                label = batch["mlm_labels"][row, k]
                shown[row, position] = {"mask": MASK, "unchanged": label, "random": 5}[kind]
                # What looks unchanged counts as unchanged.
                hidden[row, k] = "unchanged" if kind == "random" and label == 5 else kind
    batch["input_ids"] = shown
    batch["sop_labels"][5] = -1
    evaluate = jax.jit(lambda params, rows: evaluation_sums(apply_model(model, params, rows), rows))
    sums = evaluate(state.params, batch)
    result = figures({name: np.asarray(value, np.float64) for name, value in sums.items()})

    output = model.apply(
        {"params": state.params},
        shown,
        batch["attention_mask"],
        batch["token_type_ids"],
        head_inputs={"mlm": {"positions": batch["mlm_positions"]}},
    )
    nll = -np.asarray(jax.nn.log_softmax(output.mlm_logits))
    losses = {key: nll[key[0], key[1], batch["mlm_labels"][key]] for key in hidden}
    np.testing.assert_allclose(result["mlm_loss"], np.mean(list(losses.values())), rtol=1e-5)
    for kind in ("mask", "unchanged", "random"):
        mine = [loss for key, loss in losses.items() if hidden[key] == kind]
        np.testing.assert_allclose(result[f"mlm_loss_shown_{kind}"], np.mean(mine), rtol=1e-5)
    sop = -np.asarray(jax.nn.log_softmax(output.sop_logits))[np.arange(5), batch["sop_labels"][:5]]
    np.testing.assert_allclose(result["sop_loss"], sop.mean(), rtol=1e-5)
    assert result["sop_targets"] == 5

    words = shown.copy()
    for row, k in hidden:
        words[row, batch["mlm_positions"][row, k]] = batch["mlm_labels"][row, k]
    is_masked = np.zeros_like(words, bool)
    for row, k in hidden:
        is_masked[row, batch["mlm_positions"][row, k]] = True
    words = words[is_masked | ((words != CLS) & (words != SEP))]
    share = np.unique(words, return_counts=True)[1] / len(words)
    entropy = -(share * np.log(share)).sum()
    np.testing.assert_allclose(result["unigram_entropy"], entropy, rtol=1e-5)
    mine = [loss for key, loss in losses.items() if hidden[key] == "mask"]
    np.testing.assert_allclose(result["gain"], entropy - np.mean(mine), rtol=1e-5)


@pytest.mark.slow
def test_compiled_size_of_the_step_does_not_depend_on_depth():
    def lowered(layers):
        config = dataclasses.replace(TINY, num_hidden_layers=layers)
        state, step = make(config)
        return step.lower(state, random_batch())

    shallow, deep = lowered(2), lowered(24)
    assert shallow.as_text().count("\n") == deep.as_text().count("\n")
    shallow, deep = (len(program.compile().as_text()) for program in (shallow, deep))
    assert abs(deep / shallow - 1) < 0.01


def test_filled_masks_pass_over_rows_without_masks(tokenizer):
    batch = random_batch(vocab=90)
    batch["mlm_weights"][:2] = 0
    lines = filled_masks(tokenizer, batch, batch["mlm_labels"], 3)
    assert len(lines) == 3
    assert all("was:" not in line and "[" in line for line in lines)
