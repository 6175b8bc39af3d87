import dataclasses

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert.train.optimizers import make_optimizer
from albert.train.schedules import SCHEDULES, Shape
from optimizers import LAMB

NEW = [name for name in SCHEDULES if name != "released"]


@st.composite
def shapes(draw, cooldown=True):
    total = draw(st.integers(1, 400))
    warmup = draw(st.integers(0, total))
    cool = draw(st.none() | st.integers(0, total - warmup)) if cooldown else None
    peak = draw(st.floats(1e-5, 1.0))
    final = draw(st.sampled_from([0.0, 0.1, 1.0])) * peak
    return Shape(peak=peak, final=final, warmup=warmup, cooldown=cool, total=total)


STEPS = np.arange(421)  # of one length always, so that nothing is compiled for each example


def rates(name, shape):
    """Of k = 0, ..., at least 20 behind the end."""
    return np.asarray(SCHEDULES[name].build(shape)(STEPS), np.float64)


def test_released_is_what_it_was():
    """Every step's rate, bit for bit, in the words of before there were others."""

    def before(count, learning_rate, warmup_steps, total_steps):
        step = jax.numpy.asarray(count, np.float32)
        decayed = learning_rate * (1.0 - jax.numpy.minimum(step, total_steps) / total_steps)
        warming = learning_rate * step / max(warmup_steps, 1)
        return jax.numpy.where(step < warmup_steps, warming, decayed)

    steps = np.arange(130_001)
    shape = Shape(peak=0.00176, final=0.0, warmup=3125, cooldown=None, total=125_000)
    ours = SCHEDULES["released"].build(shape)(steps)
    np.testing.assert_array_equal(ours, before(steps, 0.00176, 3125, 125_000))
    # And it is the released program's: no jump up, the decay is counted from step 0.
    for step in (0, 1, 100, 3124):
        np.testing.assert_allclose(ours[step], 0.00176 * step / 3125, rtol=1e-5)
    for step in (3125, 60_000, 124_999, 125_000, 130_000):
        expected = 0.00176 * (1 - min(step, 125_000) / 125_000)
        np.testing.assert_allclose(ours[step], expected, rtol=1e-5, atol=1e-9)


@given(shapes())
@settings(deadline=None, max_examples=50)
def test_released_falls_in_a_line_that_began_at_step_0(shape):
    rate = rates("released", shape)
    k = np.arange(len(rate))
    line = shape.final + (shape.peak - shape.final) * (1 - np.minimum(k, shape.total) / shape.total)
    warming = shape.peak * k / max(shape.warmup, 1)
    expected = np.where(k < shape.warmup, warming, line)
    np.testing.assert_allclose(rate, expected, rtol=1e-5, atol=1e-6 * shape.peak)


@pytest.mark.parametrize("name", NEW)
@given(shapes())
@settings(deadline=None, max_examples=50)
def test_every_new_schedule_warms_up_to_its_peak_and_ends_at_its_floor(name, shape):
    rate = rates(name, shape)
    near = {"rtol": 1e-5, "atol": 1e-6 * shape.peak}
    k = np.arange(shape.warmup + 1)
    np.testing.assert_allclose(
        rate[: shape.warmup + 1], shape.peak * (k / shape.warmup if shape.warmup else 1), **near
    )
    assert rate.max() <= shape.peak * (1 + 1e-5)
    after = rate[shape.warmup :]
    assert (np.diff(after) <= 1e-6 * shape.peak).all()
    assert (after >= shape.final - 1e-6 * shape.peak).all()
    if name == "inverse_sqrt":
        k = np.arange(shape.warmup, len(rate))
        expected = shape.peak * np.sqrt(max(shape.warmup, 1) / np.maximum(k, 1))
        np.testing.assert_allclose(after, np.maximum(expected, shape.final), **near)
    elif shape.warmup < shape.total and shape.cooldown != 0:
        length = shape.total // 5 if shape.cooldown is None else shape.cooldown
        if name != "wsd" or min(length, shape.total - shape.warmup):
            np.testing.assert_allclose(rate[shape.total :], shape.final, **near)


@pytest.mark.parametrize("name", NEW)
@given(shapes())
@settings(deadline=None, max_examples=50)
def test_new_schedules_do_not_jump(name, shape):
    """Between neighbours no more than the steepest of their own formulas."""
    length = shape.total - shape.warmup
    if name == "wsd":
        length = min(shape.total // 5, length) if shape.cooldown is None else shape.cooldown
    steepest = {
        "linear": 1 / max(length, 1),
        "cosine": np.pi / 2 / max(length, 1),
        "wsd": np.sqrt(1 / max(length, 1)),
        "inverse_sqrt": 1 - np.sqrt(max(shape.warmup, 1) / (max(shape.warmup, 1) + 1)),
    }[name]
    fall = (shape.peak - (0 if name == "inverse_sqrt" else shape.final)) * steepest
    # Nothing is said of what comes behind the last step but that it does not rise.
    rate = rates(name, shape)[: shape.total + 1]
    allowed = np.where(np.arange(shape.total) < shape.warmup, shape.peak / max(shape.warmup, 1), 0)
    differences = np.diff(rate)
    assert (differences <= allowed * (1 + 1e-4) + 1e-6 * shape.peak).all()
    assert (-differences <= fall * (1 + 1e-4) + 1e-6 * shape.peak).all()


@given(shapes(cooldown=False))
@settings(deadline=None, max_examples=50)
def test_linear_and_cosine_are_those_of_optax(shape):
    length = shape.total - shape.warmup
    if not length or not shape.warmup:  # optax refuses the one and warns of the other
        return
    cosine = optax.warmup_cosine_decay_schedule(
        0.0, shape.peak, shape.warmup, shape.total, shape.final
    )
    linear = optax.join_schedules(
        [
            optax.linear_schedule(0.0, shape.peak, shape.warmup),
            optax.linear_schedule(shape.peak, shape.final, length),
        ],
        [shape.warmup],
    )
    for name, stock in (("cosine", cosine), ("linear", linear)):
        np.testing.assert_allclose(
            rates(name, shape), stock(STEPS), rtol=1e-5, atol=1e-6 * shape.peak
        )


@given(shapes())
@settings(deadline=None, max_examples=50)
def test_wsd_holds_the_peak_and_cools_down_by_a_root(shape):
    left = shape.total - shape.warmup
    length = min(shape.total // 5, left) if shape.cooldown is None else shape.cooldown
    rate = rates("wsd", shape)[: shape.total + 1]
    near = {"rtol": 1e-5, "atol": 1e-6 * shape.peak}
    begin = shape.total - length
    np.testing.assert_allclose(rate[shape.warmup : begin + 1], shape.peak, **near)
    t = np.arange(length + 1) / max(length, 1)
    expected = shape.final + (shape.peak - shape.final) * (1 - np.sqrt(t))
    np.testing.assert_allclose(rate[begin:], expected, rtol=1e-4, atol=2e-6 * shape.peak)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_field_that_is_said_to_be_read_changes_the_rate(name):
    config = dataclasses.replace(LAMB, schedule=name)
    steps = np.arange(100)
    usual = make_optimizer(config, 100)[1](steps)
    changed = {"final_learning_rate": 0.09, "cooldown_steps": 7}
    for field in ("warmup_steps", "learning_rate", *SCHEDULES[name].fields):
        value = {"warmup_steps": 31, "learning_rate": 1.0, **changed}[field]
        other = dataclasses.replace(config, **{field: value})
        assert not other.problems()
        assert np.abs(make_optimizer(other, 100)[1](steps) - usual).max() > 1e-4, field


def test_the_first_update_has_the_rate_of_step_1_and_the_last_that_of_the_end():
    config = dataclasses.replace(LAMB, schedule="cosine", final_learning_rate=0.01)
    _, schedule = make_optimizer(config, 10)
    np.testing.assert_allclose(schedule(0), 0.05, rtol=1e-5)
    np.testing.assert_allclose(schedule(1), 0.1, rtol=1e-5)
    np.testing.assert_allclose(schedule(9), 0.01, rtol=1e-5)


def test_what_is_longer_than_the_run_is_a_problem():
    config = dataclasses.replace(LAMB, schedule="wsd", warmup_steps=40, cooldown_steps=30)
    assert config.length_problems(70) == []
    assert config.length_problems(60) == [
        "warmup_steps 40 and cooldown_steps 30 are together more than train.num_steps 60"
    ]
    assert config.length_problems(39) == ["warmup_steps 40 is more than train.num_steps 39"]
    # An unset cool-down is what is left, at most.
    assert dataclasses.replace(config, cooldown_steps=None).length_problems(40) == []
