"""Phases: which rows, which rate, what is saved, and that a run goes on to the same bits."""

import dataclasses
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from albert.data.pretraining.prepare import prepare
from albert.runtime import RunError
from albert.runtime.fields import ConfigError
from albert.runtime.signals import Preempted
from albert.tasks.pretraining import Pretraining
from albert.train import loop
from albert.train.config import check, check_devices, from_json
from albert.train.loop import train
from albert.train.optimizers import make_optimizer
from albert.train.phases import make_phased_optimizer, phase_at, phases_of
from albert.train.sharding import put_batch
from configs import base_two_lengths
from runs import assert_bit_equal, final_params, records

SHORT = {
    "steps": 5,
    "data.seq_length": 16,
    "data.max_predictions": 3,
    "train.batch_size": 32,
}
LONG = {"optimizer.learning_rate": 0.001, "optimizer.warmup_steps": 1}


@pytest.fixture
def phased(tiny):
    """Five steps of 32 short rows, then four of 16 longer ones with a rate of their own."""
    tiny.phases = (SHORT, LONG)
    tiny.train.num_steps = 9
    tiny.train.checkpoint_every = 3
    tiny.train.keep_last = 9
    return tiny


def test_without_phases_a_run_is_one(tiny):
    config = check(tiny)
    (phase,) = phases_of(config)
    assert phase.config == config
    assert (phase.first, phase.end, phase.first_row, phase.course) == (0, 8, 0, ())


def test_fields_of_a_phase_hold_to_its_end_and_no_longer(phased):
    config = check(phased)
    short, long = phases_of(config)
    assert (short.config.data.seq_length, long.config.data.seq_length) == (16, 32)
    assert (short.config.train.batch_size, long.config.train.batch_size) == (32, 16)
    assert (short.first, short.end, long.first, long.end) == (0, 5, 5, 9)
    reached = [phase_at((short, long), step).number for step in (0, 1, 5, 6, 9)]
    assert reached == [0, 0, 0, 1, 1]  # step 5 was taken in the first


@pytest.mark.parametrize(
    ("changes", "first_row"),
    [
        ({"train.batch_size": 4}, 40),  # rows that are cut alike: on in the same epoch
        ({"data.masking_rate": 0.3}, 40),
        ({"data.seq_length": 16}, 0),
        ({"data.packing": 2, "data.max_predictions": 10}, 0),
    ],
)
def test_rows_go_on_where_they_are_cut_alike(tiny, changes, first_row):
    tiny.phases = ({"steps": 5, "train.batch_size": 8}, changes)
    _, then = phases_of(check(tiny))
    assert then.first_row == first_row
    assert then.row_at(6) == first_row + then.config.train.batch_size
    tiny.phases = (*tiny.phases[:1], {"steps": 1, **changes}, {"train.batch_size": 8})
    last = phases_of(check(tiny))[-1]
    between = 0 if first_row == 0 else phases_of(check(tiny))[1].config.train.batch_size
    assert last.first_row == 40 + between


def test_a_rate_of_its_own_begins_the_schedule_again(phased):
    config = check(phased)
    _, schedule = make_phased_optimizer(config)
    first = make_optimizer(config.optimizer, 5)[1]
    of_second = dataclasses.replace(config.optimizer, learning_rate=0.001, warmup_steps=1)
    second = make_optimizer(of_second, 4)[1]
    expected = [*(first(k) for k in range(5)), *(second(k) for k in range(4))]
    np.testing.assert_allclose([schedule(k) for k in range(9)], expected, rtol=1e-6)
    phased.phases = (SHORT, {})
    whole = make_optimizer(config.optimizer, 9)[1]
    goes_on = make_phased_optimizer(check(phased))[1]
    np.testing.assert_array_equal([goes_on(k) for k in range(9)], [whole(k) for k in range(9)])


def test_a_phase_without_a_rate_has_that_of_the_one_before(phased):
    phased.phases = (SHORT, {"steps": 1, **LONG}, {})
    phases = phases_of(check(phased))
    assert [p.config.optimizer.learning_rate for p in phases] == [0.00176, 0.001, 0.001]
    _, schedule = make_phased_optimizer(check(phased))
    begun_once = phases_of(check({**phased.to_dict(), "phases": (SHORT, LONG)}))
    _, same = make_phased_optimizer(begun_once[0].config)
    np.testing.assert_allclose([schedule(k) for k in range(9)], [same(k) for k in range(9)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tmp_path_factory.mktemp("phases")


@pytest.fixture
def two_phases(phased, undisturbed, capsys, monkeypatch):
    """A finished run, made once, with what it printed and the rows that it took."""
    if not (undisturbed / "config.json").exists():
        taken = []

        def put(rows, sharding):
            taken.append(rows["input_ids"].copy())
            return put_batch(rows, sharding)

        monkeypatch.setattr(loop, "put_batch", put)
        train(check(phased), undisturbed)
        monkeypatch.undo()
        (undisturbed / "printed.txt").write_text(capsys.readouterr().out)
        np.savez(undisturbed / "taken.npz", *taken)
    return undisturbed


def test_every_step_takes_the_rows_of_its_phase(two_phases, phased):
    """Against rows that are asked for one by one from the text prepared for each length."""
    config = check(phased)
    with np.load(two_phases / "taken.npz") as file:
        taken = [file[f"arr_{number}"] for number in range(len(file.files))]
    expected = []
    for phase in phases_of(config):
        of = prepare(phase.config.data, config.model.vocab_size, config.seed).train
        size = phase.config.train.batch_size
        for step in range(phase.end - phase.first):
            expected.append(of.batch(range(step * size, (step + 1) * size))["input_ids"])
    assert len(taken) == len(expected) == 9
    for ours, theirs in zip(taken, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_in_two_phases(two_phases):
    printed = (two_phases / "printed.txt").read_text()
    assert "then steps 1 to 5 of 9" in printed
    assert "Now steps 6 to 9: optimizer.learning_rate 0.001" in printed
    train_lines = records(two_phases)
    # Every line of the log is of one phase, and its epoch is of that phase's rows.
    assert [line["step"] for line in train_lines] == [2, 4, 5, 6, 8, 9]
    assert train_lines[3]["epoch"] < train_lines[2]["epoch"]
    # At the end of a phase it is evaluated and saved.
    assert [line["step"] for line in records(two_phases, "valid")] == [4, 5, 8, 9]
    assert sorted(int(p.name) for p in (two_phases / "checkpoints").iterdir()) == [3, 5, 6, 8, 9]
    description = json.loads((two_phases / "config.json").read_text())
    assert description["config"]["data"]["seq_length"] == 32
    assert description["course"] == [
        "steps 1 to 5: data.seq_length 16, data.max_predictions 3, data.packing 0, "
        "data.masking_rate 0.15, data.masking_unit word, data.max_ngram 3, "
        "data.short_seq_prob 0.1, train.batch_size 32"
    ]
    assert from_json(description["config"]).phases == (SHORT, LONG)


@pytest.mark.parametrize(
    ("steps", "phase_of_loop"),
    [
        ((5,), "batch"),  # the first of the second phase
        pytest.param((2, 7), "step", marks=pytest.mark.slow),
        pytest.param((5,), "evaluate", marks=pytest.mark.slow),
        pytest.param((5,), "save", marks=pytest.mark.slow),
        pytest.param((4, 5, 8), "log", marks=pytest.mark.slow),
    ],
)
def test_stopped_in_each_phase_it_ends_bit_equal(
    two_phases, phased, tmp_path, steps, phase_of_loop
):
    config = check(phased)
    for step in steps:

        def watch(phase, now, step=step):
            if phase == phase_of_loop and now == step:
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Preempted):
            train(config, tmp_path, watch=watch)
    outcome = train(config, tmp_path)
    assert outcome.step == 9
    assert_bit_equal(final_params(tmp_path, 9), final_params(two_phases, 9))
    for group in ("train", "valid"):
        ours, theirs = records(tmp_path, group), records(two_phases, group)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


def test_from_the_checkpoint_between_two_phases(two_phases, phased, tmp_path):
    """Only its checkpoint is left: it is of the first phase, and goes on with the second."""
    shutil.copytree(two_phases, tmp_path / "run")
    kept = tmp_path / "run" / "checkpoints" / "5"
    for step in kept.parent.iterdir():
        if step != kept:
            shutil.rmtree(step)
    (tmp_path / "run" / "eval_9.json").unlink()
    train(check(phased), tmp_path / "run")
    assert_bit_equal(final_params(tmp_path / "run", 9), final_params(two_phases, 9))


def test_what_is_past_may_not_change_and_what_comes_may(two_phases, phased, tmp_path, capsys):
    shutil.copytree(two_phases, tmp_path / "run")
    phased.phases = ({**SHORT, "train.batch_size": 16}, LONG)
    phased.train.num_steps = 11
    with pytest.raises(RunError, match=r"phases before this one: .*train.batch_size 32 -> .*16"):
        train(check(phased), tmp_path / "run")
    # A third phase behind a run that is finished.
    phased.phases = (SHORT, {"steps": 4, **LONG}, {"train.batch_size": 8})
    outcome = train(check(phased), tmp_path / "run")
    assert outcome.step == 11
    assert "Now steps 10 to 11: train.batch_size 8" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_phases_can_be_given_one(run, tiny, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    tiny.phases = ({"steps": 8}, {"data.seq_length": 64, "data.max_predictions": 10})
    tiny.train.num_steps = 10
    assert train(check(tiny), tmp_path / "run").step == 10


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        (({"data.seq_len": 8}, {}), "phases[0] changes data.seq_len.*did you mean data.seq_length"),
        (({"model.hidden_size": 8}, {}), "the same in a whole run; there is data.seq_length"),
        (({"steps": 0}, {}), "phases[0] has steps 0; it must be a whole number"),
        (({"steps": 5.0}, {}), "phases[0] has steps 5.0"),
        (({"data.seq_length": 8}, {}), "phases[0] lacks steps; only the last"),
        (({"steps": 4}, {"steps": 4}), "phases[1] has steps; the last takes what"),
        (({"steps": 8}, {}), "8 steps are taken before the last one begins, and train.num_steps"),
        (({"steps": 4}, {"data.seq_length": "8"}), "phases[1] is wrong: data.seq_length is '8'"),
        (({"steps": 4}, {"optimizer.warmup_steps": 1}), "goes on and does not warm up again"),
        (({"steps": 4}, {"data.seq_length": 128}), "phases[1]: data.seq_length 128 is longer than"),
        (({"steps": 4}, {"train.accumulation": 3}), "phases[1]: train.batch_size 16 is not a mul"),
        (({"steps": 4}, {**LONG, "optimizer.warmup_steps": 5}), "warmup_steps 5 is more than"),
    ],
)
def test_phases_that_make_no_sense_are_told(tiny, phases, told):
    tiny.phases = phases
    with pytest.raises(ConfigError) as raised:
        check(tiny)
    assert re.search(told.replace("[", r"\[").replace("]", r"\]"), str(raised.value))


def test_epochs_and_fields_of_other_tasks_are_told(tiny):
    tiny.phases = ({"steps": 4}, {})
    tiny.train.epochs = 1.0
    with pytest.raises(ConfigError, match=r"phases are counted in steps"):
        check(tiny)


def test_rows_of_a_later_phase_that_devices_cannot_share_are_told_first(phased):
    phased.phases = (SHORT, {"train.batch_size": 12})
    config = check(phased)
    params = Pretraining.abstract_params(Pretraining.make_model(config))
    with pytest.raises(ConfigError, match=r"phases\[1\]: train\.batch_size = 12 rows"):
        check_devices(config, params, jax.device_count())


def test_the_config_with_two_lengths_is_bert_s():
    config = check(base_two_lengths.get_config(), needs_text=False)
    short, long = phases_of(config)
    steps = config.train.num_steps
    assert (short.end, long.end) == (steps * 9 // 10, steps)
    assert (short.config.data.seq_length, long.config.data.seq_length) == (128, 512)
    tiny_short, tiny_long = phases_of(check(base_two_lengths.get_config("tiny"), needs_text=False))
    assert (tiny_short.config.data.seq_length, tiny_long.config.data.seq_length) == (16, 64)
    assert (tiny_short.end, tiny_long.end) == (54, 60)
