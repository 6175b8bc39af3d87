"""Runs that things happen to: what is lost, what is said, and that the end is the same bits.

docs/reliability.md has a line for each of these. What runs in processes of its own is marked slow.
"""

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from albert.checkpoints.store import CheckpointError, Checkpoints
from albert.data.sources.base import SourceError
from albert.runtime import RunError
from albert.runtime.signals import Preempted
from albert.train.config import check
from albert.train.loop import train
from faults import killed_at, poisoned, signal_at
from runs import (
    assert_bit_equal,
    final_params,
    launch,
    launch_together,
    printed_by,
    records,
    run_together,
    wait_for,
)
from texts import write_text

ROOT = Path(__file__).resolve().parent.parent


def state_of(workdir, step):
    """Everything that a run goes on from, as it lies on disk."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = [checkpoints.restore_arrays(step, item) for item in ("params", "training")]
    checkpoints.close()
    return found


def figures(workdir):
    """What the log says of losses and gradients, without speeds."""
    return [
        {k: v for k, v in record.items() if "loss" in k or "norm" in k or k in ("step", "group")}
        for record in records(workdir) + records(workdir, "valid")
    ]


# Signals, in this process: each of these would end a program that does not take them.


@pytest.mark.parametrize(
    ("phase", "step", "saved", "how"),
    [
        pytest.param("prepare", 0, None, [signal.SIGTERM], id="preparing", marks=pytest.mark.slow),
        pytest.param(
            "step", 0, 1, [signal.SIGINT, signal.SIGTERM], id="compiling", marks=pytest.mark.slow
        ),
        pytest.param("step", 5, 6, [signal.SIGTERM], id="stepping", marks=pytest.mark.slow),
        pytest.param("evaluate", 4, 4, 2 * [signal.SIGINT], id="evaluating"),
        pytest.param("batch", 5, 5, [signal.SIGTERM], id="waiting", marks=pytest.mark.slow),
        pytest.param("save", 4, 4, 2 * [signal.SIGTERM], id="saving", marks=pytest.mark.slow),
    ],
)
def test_a_signal_anywhere_stops_at_a_boundary_and_loses_nothing(
    run, tiny, tmp_path, phase, step, saved, how
):
    with pytest.raises(Preempted, match=r"Stopped by SIG(TERM|INT) .* The same command resumes it"):
        train(check(tiny), tmp_path, watch=signal_at(phase, step, how))
    assert max(Checkpoints(tmp_path / "checkpoints").steps(), default=None) == saved
    assert not (tmp_path / "running.json").exists()
    train(check(tiny), tmp_path)
    assert_bit_equal(state_of(tmp_path, 8), state_of(run, 8))
    assert figures(tmp_path) == figures(run)


@pytest.mark.slow
def test_what_was_evaluated_when_it_was_stopped_is_logged_once(run, tiny, tmp_path):
    """Where no save was due at that step."""
    tiny.train.checkpoint_every, tiny.train.keep_best = 100, 0
    with pytest.raises(Preempted, match=r"at step 4, which is saved"):
        train(check(tiny), tmp_path, watch=signal_at("batch", 4))
    train(check(tiny), tmp_path)
    assert figures(tmp_path) == figures(run)


@pytest.mark.slow
def test_what_was_evaluated_and_not_saved_again_is_logged_once(run, tiny, tmp_path):
    """Stopped before the evaluation that was due, then killed behind it. Found by the soak."""
    with pytest.raises(Preempted, match=r"at step 4, which is saved"):
        train(check(tiny), tmp_path, watch=signal_at("step", 3))
    assert records(tmp_path, "valid") == []
    with pytest.raises(MemoryError):
        train(check(tiny), tmp_path, watch=killed_at("step", 4))
    assert [record["step"] for record in records(tmp_path, "valid")] == [4]
    # Evaluated now, it is saved again, so that its loss counts.
    assert Checkpoints(tmp_path / "checkpoints").losses().keys() == {4}
    train(check(tiny), tmp_path)
    assert figures(tmp_path) == figures(run)


@pytest.mark.slow
def test_a_run_that_was_stopped_in_its_last_evaluation_has_its_figures(run, tiny, tmp_path):
    with pytest.raises(Preempted, match=r"at step 8, which is saved"):
        train(check(tiny), tmp_path, watch=signal_at("evaluate", 8))
    resumed = train(check(tiny), tmp_path)
    assert resumed.figures["valid"]["loss"] == records(run, "valid")[-1]["loss"]
    assert train(check(tiny), tmp_path).figures == resumed.figures
    assert figures(tmp_path) == figures(run)


def test_a_run_killed_before_its_report_writes_it(run, tiny, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "eval_8.json").unlink()
    train(check(tiny), tmp_path / "run")
    ours, theirs = (json.loads((d / "eval_8.json").read_text()) for d in (tmp_path / "run", run))
    assert ours == theirs
    assert figures(tmp_path / "run") == figures(run)
    assert "Held-out text at step 8" in capsys.readouterr().out


def test_a_run_without_its_checkpoints_says_that_it_begins_again(run, tiny, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "eval_8.json").unlink()
    train(check(tiny), tmp_path / "run")
    words = r"the logs in .* go to step 8, and there is no checkpoint: beginning again at the first"
    assert re.search(words, capsys.readouterr().out)
    assert figures(tmp_path / "run") == figures(run)


# Damage.


def test_the_newest_sound_checkpoint_is_used_and_the_rest_told(run, tiny, tmp_path, capsys):
    work = tmp_path / "run"
    shutil.copytree(run, work)
    (work / "eval_8.json").unlink()
    victim = max((work / "checkpoints/8").rglob("*"), key=lambda p: p.stat().st_size)
    whole = bytearray(victim.read_bytes())
    whole[len(whole) // 2] ^= 4
    victim.write_bytes(whole)
    (work / "checkpoints/9").mkdir()
    train(check(tiny), work)
    printed = capsys.readouterr().out
    assert "checkpoints/9 is not sound: the folder is empty" in printed
    assert f"{victim.name} is damaged" in printed
    assert "Resuming from the checkpoint of step 4" in printed
    assert_bit_equal(state_of(work, 8), state_of(run, 8))
    for step in (4, 8):
        (work / "checkpoints" / str(step) / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="None of the checkpoints in"):
        train(check(tiny), work)


@pytest.mark.parametrize(
    "how", ["reordered", *(pytest.param(h, marks=pytest.mark.slow) for h in ("replaced", "cut"))]
)
def test_other_text_under_a_run_is_refused(tiny, tmp_path, how):
    path = write_text(tmp_path / "a.txt", 200)
    tiny.data.train_sources = (str(path),)
    tiny.data.folder = str(tmp_path / "prepared")
    tiny.train.num_steps = 4
    train(check(tiny), tmp_path / "run")
    documents = path.read_text().split("\n\n")
    if how == "replaced":
        write_text(path, 200, seed=5)
    else:
        path.write_text("\n\n".join(documents[::-1] if how == "reordered" else documents[:150]))
    tiny.train.num_steps = 8
    with pytest.raises(RunError, match=r"a\.txt: other changed files \(a\.txt\)"):
        train(check(tiny), tmp_path / "run")


def test_a_corrupt_record_under_the_reader_is_told_with_its_file(run, tiny, tmp_path):
    """The state of the step before it is saved first."""
    work = tmp_path / "run"
    tiny.data.folder = str(tmp_path / "prepared")
    tiny.train.num_steps = 6
    train(check(tiny), work)
    for path in (tmp_path / "prepared").rglob("*.array_record*"):
        whole = bytearray(path.read_bytes())
        for place in range(len(whole) // 3, len(whole) - 200, 97):
            whole[place] ^= 255
        path.write_bytes(whole)
    tiny.train.num_steps = 40
    with pytest.raises(RunError, match=r"The batch of step \d+ could not be made: .*") as error:
        train(check(tiny), work)
    assert str(tmp_path / "prepared") in str(error.value)
    step = int(re.search(r"The batch of step (\d+)", str(error.value))[1])
    assert Checkpoints(work / "checkpoints").steps()[-1] == step - 1


@pytest.mark.slow
def test_a_damaged_index_is_told_before_the_first_step(tiny, tmp_path):
    tiny.data.folder = str(tmp_path / "prepared")
    train(check(tiny), tmp_path / "run")
    path = next((tmp_path / "prepared").glob("*/sentence_lengths.npy"))
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(whole)
    tiny.train.num_steps = 9
    with pytest.raises(
        SourceError, match=r"sentence_lengths\.npy is not as it was written"
    ) as error:
        train(check(tiny), tmp_path / "run")
    shutil.rmtree(path.parent)
    assert str(path.parent) in str(error.value)
    train(check(tiny), tmp_path / "run")


# Numbers.


def test_one_bad_step_changes_nothing_but_its_counters(tiny, tmp_path, monkeypatch):
    tiny.train.checkpoint_every, tiny.train.keep_last = 1, 10
    poisoned(monkeypatch, {6}, np.nan)
    train(check(tiny), tmp_path)
    before, after = state_of(tmp_path, 5), state_of(tmp_path, 6)
    assert_bit_equal(after[0], before[0])
    assert_bit_equal(after[1]["opt_state"], before[1]["opt_state"])
    assert [int(s[1]["bad_steps"]) for s in (before, after, state_of(tmp_path, 8))] == [0, 1, 1]
    assert np.isfinite(records(tmp_path)[-1]["loss"])


def test_divergence_rolls_back_and_goes_on_behind_the_rows(tiny, tmp_path, monkeypatch, capsys):
    """And is the same when the run is killed after it."""
    tiny.train.max_bad_steps = 2
    tiny.train.num_steps = 20
    tiny.train.on_divergence = "rollback"
    tiny.train.keep_last = 10
    poisoned(monkeypatch, {7, 8})
    train(check(tiny), tmp_path / "whole")
    printed = capsys.readouterr().out
    assert "Training diverged: 2 steps in a row" in printed
    assert "Rolled back to step 4; resuming with the rows of step 9." in printed
    rolled, last = state_of(tmp_path / "whole", 8), state_of(tmp_path / "whole", 20)
    assert_bit_equal(rolled[0], state_of(tmp_path / "whole", 4)[0])
    # Steps 7 and 8 were bad, 5 and 6 undone.
    assert int(rolled[1]["bad_steps"]) == 4
    assert int(last[1]["step"]) == 20
    assert int(last[1]["bad_steps"]) == 4
    for name in os.listdir(tmp_path / "whole" / "diverged"):
        assert name in ("step_6.npz", "step_7.npz")
    # Started again from the checkpoint of the roll-back it ends the same.
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", again)
    (again / "eval_20.json").unlink()
    for step in (12, 16, 20):
        shutil.rmtree(again / "checkpoints" / str(step))
    monkeypatch.undo()
    train(check(tiny), again)
    assert_bit_equal(state_of(again, 20), last)
    assert figures(again) == figures(tmp_path / "whole")


def test_a_learning_rate_of_1e20_stops_and_leaves_its_rows(tiny, tmp_path):
    tiny.optimizer.learning_rate = 1e20
    tiny.optimizer.warmup_steps = 1
    tiny.optimizer.name = "optax.sgd"
    tiny.train.max_bad_steps = 3
    tiny.train.num_steps = 30
    with pytest.raises(RunError, match=r"Training diverged: 3 steps in a row") as error:
        train(check(tiny), tmp_path)
    file = str(error.value).split("--file=")[1].splitlines()[0]
    done = subprocess.run(
        [sys.executable, "tools/show_batch.py", f"--file={file}", "--rows=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "row 1 of 16" in done.stdout
    assert "sentence order" in done.stdout


# Disks.


def fails(monkeypatch, calls):
    """Saves of these numbers fail as on a full disk, in the background."""
    original = Checkpoints._verify_saved

    def verify(self):
        verify.calls += 1
        if verify.calls in calls:
            raise OSError(28, "No space left on device")
        original(self)

    verify.calls = 0
    monkeypatch.setattr(Checkpoints, "_verify_saved", verify)


def test_a_failed_save_is_told_and_the_next_one_tried(run, tiny, tmp_path, monkeypatch, capsys):
    tiny.train.checkpoint_every = 2
    fails(monkeypatch, {2, 3})
    train(check(tiny), tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("could not be saved: OSError: [Errno 28] No space left on device.") == 2
    assert "Warning: The checkpoint of step 4 could not be saved" in printed
    assert "The next save tries again; after 3 failures in a row the run stops." in printed
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 8
    assert_bit_equal(final_params(tmp_path, 8), final_params(run, 8))


def test_saves_that_fail_again_and_again_stop_the_run(tiny, tmp_path, monkeypatch):
    tiny.train.checkpoint_every = 2
    tiny.train.num_steps = 20
    fails(monkeypatch, set(range(2, 100)))
    with pytest.raises(RunError, match=r"3\. failure in a row\. The newest checkpoint is step 2"):
        train(check(tiny), tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["2"]


def test_a_last_save_that_fails_is_an_error(tiny, tmp_path, monkeypatch):
    """After it was tried again; one failure alone is none."""
    fails(monkeypatch, {2, 3, 4})
    with pytest.raises(RunError, match=r"step 8 could not be saved: OSError.*checkpoint is step 4"):
        train(check(tiny), tmp_path)
    monkeypatch.undo()
    fails(monkeypatch, {2})
    train(check(tiny), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 8]


def test_logs_that_cannot_be_written_end_no_run(run, tiny, tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("")
    train(check(tiny), tmp_path)
    assert "tensorboard cannot be written: File exists. Training goes on" in capsys.readouterr().out
    assert figures(tmp_path) == figures(run)


# Time and other jobs.


def test_a_clock_that_goes_backwards_changes_nothing(run, tiny, tmp_path, monkeypatch):
    moments = iter(range(2_000_000_000, 0, -7))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    train(check(tiny), tmp_path)
    assert_bit_equal(state_of(tmp_path, 8), state_of(run, 8))


def test_a_second_job_on_a_workdir_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("albert.runtime.lock.RENEWED_EVERY", 0.1)
    refused = []

    def second(phase, step):
        if (phase, step) == ("log", 1):
            words = r"Another job works in .*: process \d+ on "
            with pytest.raises(RunError, match=words) as error:
                train(check(tiny), tmp_path)
            refused.append(str(error.value))

    train(check(tiny), tmp_path, watch=second)
    assert len(refused) == 1


def test_a_job_that_was_taken_over_ends(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("albert.runtime.lock.RENEWED_EVERY", 0.05)

    def take_over(phase, step):
        if phase == "log":
            (tmp_path / "running.json").write_text("{}")
            time.sleep(0.3)

    with pytest.raises(RunError, match=r"Another job has taken .* over"):
        train(check(tiny), tmp_path, watch=take_over)


@pytest.mark.slow
def test_on_another_mesh_a_run_goes_on_with_the_same_rows(run, tiny, tmp_path):
    work = tmp_path / "run"
    shutil.copytree(run, work)
    shutil.rmtree(work / "checkpoints/8")
    (work / "eval_8.json").unlink()
    tiny.sharding.data, tiny.sharding.fsdp, tiny.sharding.tensor = 2, 2, 2
    train(check(tiny), work)
    for ours, theirs in zip(records(work), records(run), strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


@pytest.mark.slow
def test_with_a_microbatch_a_run_goes_on_elsewhere_as_the_same_run(run, tiny, tmp_path, capsys):
    """Where fewer devices share the rows a batch has more parts, and the losses are the same."""
    tiny.train.microbatch = 1
    with pytest.raises(MemoryError):
        train(check(tiny), tmp_path, watch=killed_at("log", 6))
    tiny.sharding.data, tiny.sharding.tensor = 4, 2
    train(check(tiny), tmp_path)
    told = re.findall(r"Parts of a batch: .*", capsys.readouterr().out)
    assert told == [f"Parts of a batch: {n}, of 1 rows on a device." for n in (2, 4)]
    for ours, theirs in zip(records(tmp_path), records(run), strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)


# Processes of their own.


HARD = [
    "--config.data.packing=4",
    "--config.train.accumulation=2",
    "--config.train.num_steps=120",
    "--config.train.checkpoint_every=4",
    "--config.train.log_every=1",
]


# Of runs in several processes, which take long on few cores.
SHORT = "--config.train.num_steps=40"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text, vocabulary, prepared):
    """The run of HARD that nothing happens to: dropout, packing, accumulation, eight devices."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(
        hard_command(text, vocabulary, prepared, folder), cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory, text, vocabulary, prepared):
    """The same of 40 steps."""
    folder = tmp_path_factory.mktemp("short")
    subprocess.run(
        hard_command(text, vocabulary, prepared, folder, SHORT),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


PROGRAM = ["train.py"]


def hard_command(text, vocabulary, prepared, workdir, *more):
    return [
        sys.executable,
        *PROGRAM,
        "--config=configs/base.py:v1,tiny",
        f"--workdir={workdir}",
        f"--config.data.train_sources={text}",
        f"--config.data.tokenizer={vocabulary}",
        f"--config.data.folder={prepared}",
        "--config.model.vocab_size=96",
        "--config.data.seq_length=32",
        "--config.data.max_predictions=6",
        "--config.data.max_documents=0",
        "--config.train.eval_rows=40",
        "--config.train.eval_every=15",
        "--config.sharding.data=4",
        "--config.sharding.tensor=2",
        *HARD,
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "most"),
    [pytest.param("any", 8, id="any"), pytest.param("saving", 4, id="saving")],
)
def test_killed_again_and_again_it_ends_in_the_same_bits(
    whole, text, vocabulary, prepared, tmp_path, moment, most
):
    """Kills that met a living run; a run that ends before them is compared, and another begins."""
    rng = random.Random()
    kills, rounds = 0, 0
    while True:
        work = tmp_path / f"round_{rounds}"
        arguments = hard_command(text, vocabulary, prepared, work)
        if kills < most:
            for left_over in unfinished(work):  # or the wait below would end at once
                shutil.rmtree(left_over)
            newest = max(Checkpoints(work / "checkpoints", create=True).steps(), default=0)
            process = launch(arguments)
            if moment == "any":
                # From starting up to steps and evaluations; some go a little further each time.
                time.sleep(rng.uniform(2, 14))
            else:
                while process.poll() is None and not unfinished(work):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.02))
            alive = process.poll() is None
            process.send_signal(signal.SIGKILL)
            printed, _ = process.communicate()
            # Not from further back than what there was: beginning anew ends in the same bits too.
            if began := re.search(r"Compiling; then steps (\d+) to", printed):
                assert int(began[1]) == newest + 1
            if alive:
                kills += 1
                continue
            assert process.returncode == 0, printed
        else:
            done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        assert_bit_equal(state_of(work, 120), state_of(whole, 120))
        assert figures(work) == figures(whole)
        rounds += 1
        if kills == most:
            break


def unfinished(workdir):
    """Folders of saves that are going on, or were left."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def processes_of(text, vocabulary, prepared, workdir, *more, own=((), ())):
    """Two processes of four devices each, over gloo, that train."""
    arguments = hard_command(
        text, vocabulary, prepared, workdir, SHORT, "--heartbeat_seconds=10", *more
    )
    return launch_together([[*arguments, *mine] for mine in own])


@pytest.mark.slow
def test_two_processes_evaluate_a_run_as_one_does(run, tmp_path):
    """Over the run's own mesh, from eval.py."""
    printed = []
    for number in (1, 2):
        shutil.copytree(run, tmp_path / f"run{number}")
        command = [sys.executable, "eval.py", f"--workdir={tmp_path / f'run{number}'}"]
        printed.append(run_together(command, number))
    (alone,), (first, second) = printed
    own = re.compile(r"\[Gloo\]|Process \d of 2 on |.*: waiting for the other processes, 1800 s")
    figures = "".join(x for x in first.splitlines(keepends=True) if not own.match(x))
    assert figures.replace("run2", "run1") == alone
    assert re.search(r"Process 0 of 2 on \S+: 4 of 8 devices .*, \d+ of \d+ rows a batch", first)
    assert re.search(r"Process 1 of 2 on \S+: 4 of 8 devices ", second)
    assert "MLM loss" not in second


@pytest.mark.slow
def test_two_slices_of_a_process_each_learn_what_one_process_does(
    short, text, vocabulary, prepared, tmp_path
):
    """With weights cut within a slice, and the gradient alone between slices."""
    fields = {"slices": 2, "data": 1, "fsdp": 2, "tensor": 2}
    more = [f"--config.sharding.{name}={size}" for name, size in fields.items()]
    pair = processes_of(text, vocabulary, prepared, tmp_path, *more)
    printed = printed_by(pair, 200)
    assert [process.returncode for process in pair] == [0, 0], "\n".join(printed)
    for number, whole in enumerate(printed):
        mesh = "mesh slices 2 x data 1 x fsdp 2 x tensor 2"
        assert re.search(f"Process {number} of 2 on .*: 4 of 8 devices .*, {mesh}, ", whole)
    ours, theirs = ([r["loss"] for r in records(d)] for d in (tmp_path, short))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_a_workdir_on_one_hosts_disk_is_refused_by_all(run, text, vocabulary, prepared, tmp_path):
    """As is a run that some hosts do not see, when it is evaluated."""
    own = tuple((f"--workdir={tmp_path / name}",) for name in ("a", "b"))
    begin = time.monotonic()
    pair = processes_of(text, vocabulary, prepared, tmp_path, own=own)
    printed = printed_by(pair, 120)
    assert [process.returncode for process in pair] == [2, 2], "\n".join(printed)
    assert time.monotonic() - begin < 90
    for whole, who in zip(printed, (r"process 1\.", r"process 1 on \S+\."), strict=True):
        assert re.search(f"is not the same folder for all processes.* is not seen by {who}", whole)
    assert not list(tmp_path.glob("*/checkpoints"))
    commands = [[sys.executable, "eval.py", f"--workdir={d}"] for d in (run, tmp_path / "none")]
    pair = launch_together(commands)
    printed = printed_by(pair, 120)
    assert [process.returncode for process in pair] == [2, 2], "\n".join(printed)
    assert "process 1 failed and says why" in printed[0]
    assert f"{tmp_path / 'none'}" in printed[1]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_when_one_process_is_gone_the_others_end_and_a_restart_goes_on(
    short, text, vocabulary, prepared, tmp_path, victim, how
):
    pair = processes_of(text, vocabulary, prepared, tmp_path)
    wait_for(pair[0], "step 10/")  # by now the checkpoint of step 4 is written
    pair[victim].send_signal(how)
    begin = time.monotonic()
    printed, _ = pair[1 - victim].communicate(timeout=90)
    assert time.monotonic() - begin < 60
    assert pair[1 - victim].returncode != 0
    if victim == 1:  # the first process is the one that tells of others
        assert re.search(r"unhealthy[^:]*:\s+1\s|task:1", printed), printed
    pair[victim].send_signal(signal.SIGKILL)
    pair[victim].communicate()
    again = processes_of(text, vocabulary, prepared, tmp_path)
    printed = printed_by(again)
    assert [process.returncode for process in again] == [0, 0], "\n".join(printed)
    assert "Resuming from the checkpoint of step" in printed[0]
    ours, theirs = ([r["loss"] for r in records(d)] for d in (tmp_path, short))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


FAILING = """
import os, runpy, sys
from albert.checkpoints.store import Checkpoints
verify, calls = Checkpoints._verify_saved, []
def fails(self):
    calls.append(1)
    if len(calls) == 2:
        raise OSError(28, "No space left on device")
    verify(self)
Checkpoints._verify_saved = fails
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_save_that_fails_on_one_process_is_agreed_upon_and_tried_again(
    short, text, vocabulary, prepared, tmp_path, monkeypatch
):
    """The first process is the one that verifies; the other waits for it."""
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", ["-c", FAILING])
    pair = processes_of(text, vocabulary, prepared, tmp_path)
    printed = printed_by(pair, 200)
    assert [process.returncode for process in pair] == [0, 0], "\n".join(printed)
    assert "The checkpoint of step 8 could not be saved: OSError: [Errno 28]" in printed[0]
    assert printed[0].count("could not be saved") == 1
    assert Checkpoints(tmp_path / "checkpoints").folders()[-1] == 40
    ours, theirs = ([r["loss"] for r in records(d)] for d in (tmp_path, short))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


OUT_OF_MEMORY = """
import os, runpy, sys
import orbax.checkpoint as ocp
from albert.checkpoints import store
where, sys.argv = sys.argv[1], ["train.py", *sys.argv[2:]]
owner, name = {"copying": (ocp.PyTreeCheckpointHandler, "async_save"),
               "sums": (store, "describe"), "verifying": (store, "describe_on_host")}[where]
original, calls = getattr(owner, name), []
def fails(*arguments, **more):
    calls.append(1)
    if len(calls) == 3:
        raise MemoryError("there is no more")
    return original(*arguments, **more)
if os.environ["JAX_PROCESS_ID"] == str(int(where != "verifying")):
    setattr(owner, name, fails)
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["copying", "verifying"])
def test_of_several_processes_one_runs_out_of_memory_and_all_save_again(
    short, text, vocabulary, prepared, tmp_path, monkeypatch, where
):
    """In the part of a save that the loop waits for, and in the background."""
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", ["-c", OUT_OF_MEMORY, where])
    pair = processes_of(text, vocabulary, prepared, tmp_path)
    printed = printed_by(pair, 200)
    assert [process.returncode for process in pair] == [0, 0], "\n".join(printed)
    if where == "copying":
        assert "could not be saved: CheckpointError: process 1 failed and says why" in printed[0]
        assert "Warning (process 1): MemoryError: there is no more" in printed[1]
    else:
        assert (
            "could not be saved: MemoryError: there is no more. Meanwhile: give this" in printed[0]
        )
    assert printed[0].count("could not be saved") == 1
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 40
    ours, theirs = ([r["loss"] for r in records(d)] for d in (tmp_path, short))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_cannot_tell_the_others_of_its_failed_save_ends_all(
    text, vocabulary, prepared, tmp_path, monkeypatch
):
    """While all of them compute the sums of a save together."""
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", ["-c", OUT_OF_MEMORY, "sums"])
    pair = processes_of(text, vocabulary, prepared, tmp_path)
    alone, _ = pair[1].communicate(timeout=240)
    begin = time.monotonic()
    pair[0].communicate(timeout=120)
    assert time.monotonic() - begin < 60  # the heartbeat is 10 seconds
    assert pair[1].returncode == 2, alone
    assert "failed while it saved step 8 together with the others: MemoryError" in alone
    assert pair[0].returncode != 0
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]


@pytest.mark.slow
def test_several_processes_roll_back_together(text, vocabulary, prepared, tmp_path):
    """With a learning rate that nothing bears, until they give up."""
    fields = {
        "optimizer.name": "optax.sgd",
        "optimizer.learning_rate": 1e20,
        "optimizer.warmup_steps": 6,
        "train.max_bad_steps": 2,
        "train.log_every": 1,
        "train.checkpoint_every": 1,
        "train.on_divergence": "rollback",
    }
    pair = processes_of(
        text, vocabulary, prepared, tmp_path, *(f"--config.{k}={v}" for k, v in fields.items())
    )
    printed = printed_by(pair, 200)
    assert [process.returncode for process in pair] == [2, 2], "\n".join(printed)
    assert printed[0].count("Rolled back to step") == 3
    assert all("It was rolled back 3 times before." in text for text in printed)


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [False, True])
def test_a_run_that_nobody_listens_to_goes_on(
    short, text, vocabulary, prepared, tmp_path, signalled
):
    """As behind `| tee`, which Ctrl-C has ended: words are lost, nothing else is."""
    process = launch(hard_command(text, vocabulary, prepared, tmp_path, SHORT))
    wait_for(process, "Compiling")
    process.stdout.close()
    if signalled:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 75
        done = subprocess.run(
            hard_command(text, vocabulary, prepared, tmp_path, SHORT), cwd=ROOT, capture_output=True
        )
        assert done.returncode == 0
    else:
        assert process.wait(timeout=120) == 0
    assert_bit_equal(state_of(tmp_path, 40), state_of(short, 40))
    assert figures(tmp_path) == figures(short)


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_all(text, vocabulary, prepared, tmp_path):
    """Its own copy of the prepared text is damaged."""
    own = tmp_path / "prepared"
    shutil.copytree(prepared, own)
    for path in own.rglob("*.array_record*"):
        whole = bytearray(path.read_bytes())
        for place in range(len(whole) // 3, len(whole) - 200, 97):
            whole[place] ^= 255
        path.write_bytes(whole)
    work = tmp_path / "run"
    pair = processes_of(text, vocabulary, prepared, work, own=[[], [f"--config.data.folder={own}"]])
    begin = time.monotonic()
    printed = printed_by(pair, 120)
    assert time.monotonic() - begin < 100
    assert pair[1].returncode == 2
    assert "could not be made: The prepared corpus" in printed[1]
    assert pair[0].returncode != 0


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    short, text, vocabulary, prepared, tmp_path
):
    pair = processes_of(text, vocabulary, prepared, tmp_path)
    wait_for(pair[0], "step 6/")
    pair[1].send_signal(signal.SIGTERM)
    printed = printed_by(pair, 120)
    assert [process.returncode for process in pair] == [75, 75], "\n".join(printed)
    steps = [p.split(" at step ")[1].split(",")[0] for p in printed]
    assert steps[0] == steps[1]
    assert f"Stopped by a signal to another process at step {steps[0]}" in printed[0]
    assert max(Checkpoints(tmp_path / "checkpoints").steps()) == int(steps[0])
    # On with one process.
    done = subprocess.run(
        hard_command(text, vocabulary, prepared, tmp_path, SHORT),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = ([r["loss"] for r in records(d)] for d in (tmp_path, short))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "twice"), [("Compiling", False), ("step 5/", True), ("step 15  held-out", False)]
)
def test_a_program_that_is_signalled_leaves_with_75(
    whole, text, vocabulary, prepared, tmp_path, words, twice
):
    process = launch(hard_command(text, vocabulary, prepared, tmp_path))
    wait_for(process, words)
    process.send_signal(signal.SIGTERM)
    if twice:
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert "Traceback" not in printed, printed
    done = subprocess.run(
        hard_command(text, vocabulary, prepared, tmp_path), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_bit_equal(state_of(tmp_path, 120), state_of(whole, 120))


def limited(arguments, kilobytes):
    """The command with no file larger than this: as a disk that is full."""
    return ["bash", "-c", f"ulimit -f {kilobytes}; exec {shlex.join(arguments)}"]


@pytest.mark.slow
def test_a_full_disk_while_preparing_is_told_and_prepared_later(
    text, vocabulary, tmp_path, whole, prepared
):
    own = tmp_path / "prepared"
    arguments = hard_command(text, vocabulary, own, tmp_path / "run")
    done = subprocess.run(limited(arguments, 4), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_bit_equal(state_of(tmp_path / "run", 120), state_of(whole, 120))


@pytest.mark.slow
def test_a_full_disk_while_saving_and_logging(text, vocabulary, prepared, tmp_path, whole):
    """Saves fail until the run stops; with room again it goes on from the last that is sound."""
    arguments = hard_command(text, vocabulary, prepared, tmp_path)
    process = launch(arguments)
    wait_for(process, "step 9/")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8192, 8192))
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 2, printed
    assert printed.count("could not be saved") == 3
    assert "failure in a row" in printed
    assert "Traceback" not in printed, printed
    assert list((tmp_path / "checkpoints").glob("*tmp*")) == []
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_bit_equal(state_of(tmp_path, 120), state_of(whole, 120))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which only root may")
@pytest.mark.parametrize("options", ["ro", "size=64k"])
def test_a_workdir_on_a_file_system_without_room(text, vocabulary, prepared, tmp_path, options):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this system lets nobody mount")
    try:
        done = subprocess.run(
            hard_command(text, vocabulary, prepared, tmp_path / "run"),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        words = {"ro": "Read-only file system", "size=64k": "No space left on device"}[options]
        assert words in done.stderr + done.stdout
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
