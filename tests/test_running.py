"""What a run of days needs, piece by piece: the lock, signals, the watchdog, spikes, logs."""

import dataclasses
import errno
import gc
import json
import os
import re
import signal
import threading
import time
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert.checkpoints.agreement import CannotAgree
from albert.data.loader import BatchSource
from albert.runtime import RunError
from albert.runtime import lock as lock_module
from albert.runtime.digests import text_digest
from albert.runtime.lock import NAME, WorkdirLock, WorkdirTaken
from albert.runtime.signals import StopNow, StopSignals
from albert.runtime.watchdog import Watchdog
from albert.train.config import check
from albert.train.divergence import save_rows
from albert.train.log import Divergence
from albert.train.optimizers import make_optimizer
from albert.train.progress import Progress
from albert.train.saving import Saver
from albert.train.step import TrainState, make_train_step, new_state
from albert.train.writers import MetricWriter
from albert.train.writers.base import About
from albert.train.writers.jsonl import records
from optimizers import LAMB
from steps import PLAIN, pretraining_of, random_batch

EVERY = 0.2  # seconds between renewals, in tests


# One job for a workdir.


def test_a_second_job_is_refused_while_the_first_lives(tmp_path):
    told = []
    first = WorkdirLock(tmp_path, told.append, EVERY)
    with pytest.raises(WorkdirTaken, match=rf"Another job works in .*: process {os.getpid()} on "):
        WorkdirLock(tmp_path, told.append, EVERY)
    assert not first.lost
    first.close()
    assert not (tmp_path / NAME).exists()
    WorkdirLock(tmp_path, pytest.fail, EVERY).close()


@pytest.mark.parametrize("left", [{"machine": "elsewhere"}, None, "a dead process of this machine"])
def test_of_several_that_come_at_once_one_gets_it(tmp_path, left):
    """Where there is nothing, and where a job that is gone has left its file."""
    if isinstance(left, str):
        lock = WorkdirLock(tmp_path, pytest.fail, EVERY)
        left = json.loads((tmp_path / NAME).read_text()) | {"started": "1"}
        lock.close()
    if left is not None:
        (tmp_path / NAME).write_text(json.dumps(left))
    got, refused = [], []

    def take():
        try:
            got.append(WorkdirLock(tmp_path, lambda text: None, EVERY))
        except WorkdirTaken:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == 5
    assert not got[0].lost
    got[0].close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "left",
    [
        lambda own: own | {"process": 2**22 + 5},  # no such process
        lambda own: own | {"started": "1"},  # its number was given out again
    ],
)
def test_the_file_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path, left):
    lock = WorkdirLock(tmp_path, pytest.fail, EVERY)
    own = json.loads((tmp_path / NAME).read_text())
    lock.close()
    (tmp_path / NAME).write_text(json.dumps(left(own)))
    told = []
    begin = time.monotonic()
    WorkdirLock(tmp_path, told.append, every=5.0).close()
    assert time.monotonic() - begin < 5
    assert re.search(r"left by process \d+ on .*, which is gone: taking the workdir over", told[0])


@pytest.mark.parametrize(
    "text", ["", '{"host": "else', '["x"]', '{"machine": "other", "host": "h"}']
)
def test_a_file_that_stays_as_it_is_belongs_to_nobody(tmp_path, text):
    """Of another machine, half written or empty: after some silence."""
    (tmp_path / NAME).write_text(text)
    told = []
    begin = time.monotonic()
    WorkdirLock(tmp_path, told.append, EVERY).close()
    assert time.monotonic() - begin > lock_module._SILENT * EVERY * 0.9
    assert "seeing whether it is alive" in told[0]
    assert "which is gone" in told[1]


def test_a_job_that_died_while_it_took_over_stops_nobody(tmp_path):
    """It has left what keeps others from taking over at the same time."""
    left = {"machine": "elsewhere"}
    (tmp_path / NAME).write_text(json.dumps(left))
    (tmp_path / f"{NAME}.{text_digest(json.dumps(left))[:16]}").touch()
    WorkdirLock(tmp_path, lambda text: None, EVERY).close()
    assert list(tmp_path.iterdir()) == []


def test_whoever_was_taken_over_notices(tmp_path):
    """As one that was stopped for long does when it goes on."""
    lock = WorkdirLock(tmp_path, pytest.fail, EVERY)
    (tmp_path / NAME).write_text(json.dumps({"id": "of another"}))
    deadline = time.monotonic() + 20
    while not lock.lost:
        assert time.monotonic() < deadline
        time.sleep(EVERY)
    lock.close()
    assert json.loads((tmp_path / NAME).read_text()) == {"id": "of another"}


def test_no_clock_is_compared(tmp_path, monkeypatch):
    """A file from the future, and a clock that goes backwards."""
    lock = WorkdirLock(tmp_path, pytest.fail, EVERY)
    os.utime(tmp_path / NAME, (2**32, 2**32))
    moments = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    with pytest.raises(WorkdirTaken):
        WorkdirLock(tmp_path, lambda text: None, EVERY)
    lock.close()


# Signals.


def test_a_signal_in_a_garbage_collection_stops_what_is_stopped_at_once():
    """Python drops what is raised in its callbacks, of which jax has one."""

    armed = []

    def callback(phase, info):
        if armed:
            armed.clear()
            signal.raise_signal(signal.SIGTERM)

    def collect_and_go_on_for(seconds):
        armed.append(True)
        gc.collect()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)

    gc.callbacks.append(callback)
    begin = time.monotonic()
    try:
        for seconds in (30, 0):  # with nothing behind it, at the end
            with StopSignals() as stop, pytest.raises(StopNow), stop.immediately():
                collect_and_go_on_for(seconds)
        assert time.monotonic() - begin < 30
    finally:
        gc.callbacks.remove(callback)


def test_signals_are_remembered_and_handlers_put_back(capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.asked is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == "SIGTERM"
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == "SIGTERM"
        with pytest.raises(StopNow), stop.immediately():
            pytest.fail("came in")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert capfd.readouterr().err == (
        "SIGTERM: stopping at the next step boundary.\nSIGINT once more: already stopping.\n"
    )


def test_where_nothing_is_lost_a_signal_ends_waiting_at_once():
    with StopSignals() as stop:
        begin = time.monotonic()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(StopNow), stop.immediately():
            threading.Event().wait(30)
        assert time.monotonic() - begin < 10
        os.kill(os.getpid(), signal.SIGINT)  # outside of it, nothing is raised


def test_outside_of_the_main_thread_signals_are_left_alone():
    found = []

    def other():
        with StopSignals() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [(None, signal.getsignal(signal.SIGTERM))]


# The watchdog.


def test_the_watchdog_tells_of_what_takes_long_once_and_where_it_stands(capfd):
    watchdog = Watchdog(0.3)
    for _ in range(5):
        watchdog.now("step", "step 7")
        time.sleep(0.01)
    watchdog.now("step", "step 8")
    time.sleep(1.2)
    watchdog.rest()
    time.sleep(0.5)
    watchdog.close()
    told = capfd.readouterr().err
    assert told.count("Warning: ") == 1
    assert re.search(
        r"Warning: step 8 has taken \d+ s so far, usually [\d.]+ s\. Where every", told
    )
    assert "test_the_watchdog_tells" in told  # the stack of this thread


def test_the_watchdog_waits_longer_for_what_always_takes_long(capfd):
    watchdog = Watchdog(0.1)
    for number in range(5):
        watchdog.now("evaluation", f"evaluation {number}")
        watchdog._durations["evaluation"].append(60.0)
    time.sleep(0.6)
    watchdog.close()
    Watchdog(0.0).close()
    assert capfd.readouterr().err == ""


# Failed saves.


class Failing:
    """Checkpoints of which every save fails."""

    def __init__(self, error, steps=()):
        self._error, self._steps = error, list(steps)

    def losses(self):
        return {}

    def steps(self):
        return self._steps

    def wait(self):
        return False

    def save(self, *arguments):
        raise self._error


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Make room on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Make room in the quota"),
        (OSError(errno.EFBIG, "File too large"), "Allow larger files"),
        (PermissionError(errno.EACCES, "Permission denied"), "Give this user the right"),
        (OSError(errno.EROFS, "Read-only file system"), "Make the file system writable"),
        (MemoryError("Unable to allocate 3 GiB"), "Give this machine more"),
        # As TensorStore says it, and as what was raised because of something else.
        (ValueError('RESOURCE_EXHAUSTED: writing "x": No space left on device'), "Make room on"),
        (ValueError("PERMISSION_DENIED: [OS error 13: Permission denied]"), "Give this user"),
        (chained(RuntimeError("failed"), OSError(errno.ENOSPC, "No space")), "Make room on"),
        (ValueError("something else"), None),
        (KeyError("x"), None),
    ],
)
@pytest.mark.parametrize("steps", [[], [3]])
def test_a_failed_save_is_told_with_its_cause_and_what_helps(tiny, error, advice, steps):
    tiny.train.max_failed_saves = 2
    told = []
    saver = Saver(Failing(error, steps), check(tiny).train, told.append)
    state = TrainState(*[None] * len(dataclasses.fields(TrainState)))
    saver.save(4, state, Progress())
    with pytest.raises(RunError) as stopped:
        saver.save(5, state, Progress())
    for text in (told[0], str(stopped.value)):
        assert f"could not be saved: {type(error).__name__}: " in text
        assert str(error) in text
        kinds = {"make room", "allow larger", "give this user", "make the", "give this machine"}
        for words in kinds:
            wanted = advice is not None and advice.lower().startswith(words)
            assert (words in text.lower()) == wanted
    assert "The next save tries again; after 2 failures in a row the run stops." in told[0]
    assert "That was the 2. failure in a row." in str(stopped.value)
    there = "The newest checkpoint is step 3." if steps else "There is no checkpoint."
    assert there in str(stopped.value)
    assert stopped.value.__cause__ is error


def test_a_save_that_cannot_be_agreed_upon_is_not_tried_again(tiny):
    saver = Saver(Failing(CannotAgree("alone")), check(tiny).train, pytest.fail)
    with pytest.raises(CannotAgree, match="alone"):
        saver.save(4, TrainState(*[None] * len(dataclasses.fields(TrainState))), Progress())


# Rows of a run that diverged.


def numpy_2_0(file, *arrays, **named):
    """`numpy.savez_compressed` before 2.1, which knew no options: all it is given are arrays."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in named.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array))


class Same:
    """Rows that are the same in every batch."""

    def __init__(self, rows):
        self._rows = rows

    def batch(self, rows, whole=None):
        return self._rows


@pytest.mark.parametrize("savez", [np.savez_compressed, numpy_2_0])
def test_offending_rows_are_saved_as_they_are(tmp_path, monkeypatch, savez):
    monkeypatch.setattr(np, "savez_compressed", savez)
    rows = {"input_ids": np.arange(12).reshape(3, 4), "mlm_weights": np.ones((3, 2), np.float32)}
    source = BatchSource(Same(rows), 3, (0, 1, 2), 8, first_step=4)
    # Of three steps in a row the first was in the phase before, with other rows.
    paths = save_rows(tmp_path, source, Divergence(last=6, number=3))
    assert [path.name for path in paths] == ["step_4.npz", "step_5.npz"]
    with np.load(paths[1]) as found:
        assert set(found.files) == set(rows)
        for name, array in rows.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


# Spikes.


def test_a_spike_is_skipped_with_optimizer_and_mean_untouched():
    optimizer, schedule = make_optimizer(dataclasses.replace(LAMB, learning_rate=1e-3), 200)
    task = pretraining_of(PLAIN)
    step = jax.jit(make_train_step(task, optimizer, schedule, 1, 0, spike_factor=3.0))
    state = jax.tree.map(lambda x: x, new_state(partial(task.init, task.model), optimizer, 0))
    state = jax.tree.map(jnp.asarray, jax.jit(lambda: _unboxed(state))())
    norms = []
    for number in range(55):
        state, metrics = step(state, random_batch(seed=number))
        norms.append(float(metrics["grad_norm"]))
    assert int(state.bad_steps) == 0
    mean = norms[0]
    for norm in norms[1:]:
        mean += 0.02 * (norm - mean)
    np.testing.assert_allclose(state.grad_norm_mean, mean, rtol=1e-5)
    before = jax.tree.leaves((state.params, state.opt_state, state.grad_norm_mean))
    # Parameters a hundred times as large would be such a spike; so is a mean that is far too small.
    small = state.replace(grad_norm_mean=state.grad_norm_mean / 100)
    after, metrics = step(small, random_batch(seed=99))
    assert int(after.bad_steps) == int(after.bad_steps_in_row) == 1
    assert float(metrics["update_norm"]) == 0
    assert float(after.grad_norm_mean) == float(small.grad_norm_mean)
    kept = jax.tree.leaves((after.params, after.opt_state))
    for ours, theirs in zip(kept, before[:-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # In the first steps nothing is one, and without a factor nothing ever is.
    early = small.replace(step=jnp.int32(10))
    assert int(step(early, random_batch(seed=99))[0].bad_steps) == 0
    never = jax.jit(make_train_step(task, optimizer, schedule, 1, 0))
    assert int(never(small, random_batch(seed=99))[0].bad_steps) == 0


def _unboxed(tree):
    from flax.core import meta

    return meta.unbox(tree)


# Logs.

FILES = ("jsonl", "tensorboard")


def test_figures_that_cannot_be_written_are_told_once(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    told = []
    writer = MetricWriter(FILES, About(tmp_path, {}), told.append)
    writer.write(1, "train", {"loss": 1.0})
    writer.write(2, "train", {"loss": 2.0})
    writer.close()
    assert len(told) == 2
    assert "tensorboard cannot be written: File exists. Training goes on" in told[0]
    assert "tensorboard could not be written 3 times" in told[1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    (tmp_path / "tensorboard").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    told.clear()
    writer = MetricWriter(FILES, About(tmp_path, {}), told.append)
    writer.write(1, "train", {"loss": 1.0})
    (tmp_path / "metrics.jsonl").rmdir()
    writer.write(2, "train", {"loss": 1.0})  # the disk is there again
    writer.close()
    assert len(told) == 2
    assert "metrics.jsonl cannot be written: Is a directory" in told[0]
    assert [r["step"] for r in records(tmp_path / "metrics.jsonl")] == [2]
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("evaluated", [False, True])
def test_what_comes_again_is_dropped_and_what_is_damaged(tmp_path, evaluated):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "group": group} for step in (1, 2, 3) for group in ("train", "valid")]
    damaged = [b"\xff\xfe", b"[1]", b'{"step": "x"}', b'{"group": "train"}', b'{"step": 1, "gro']
    path.write_bytes(b"\n".join([*(json.dumps(x).encode() for x in lines), *damaged]))
    about = About(tmp_path, {}, 2, ["valid"] if evaluated else [])
    MetricWriter(FILES, about, pytest.fail).close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == lines[:3] + ([lines[3]] if evaluated else [])


def test_event_files_of_the_same_second_are_two(tmp_path, monkeypatch):
    """As when a run is started again at once, or the clock goes backwards."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    for _ in range(2):
        MetricWriter(FILES, About(tmp_path, {}), pytest.fail).close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
