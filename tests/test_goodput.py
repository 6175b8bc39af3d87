"""Where a run's time goes, and traces of its steps."""

import gzip
import json
import math
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert.train import goodput
from albert.train.config import check
from albert.train.goodput import LOST, STEPS, STOPPED, Clock, account
from albert.train.loop import TIMES, train
from faults import killed_at
from runs import ROOT, records


class Hands:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(goodput.time, "time", lambda: self.now)
        monkeypatch.setattr(goodput.time, "monotonic", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


def test_seconds_of_each_kind_over_two_starts(monkeypatch, tmp_path):
    hands = Hands(monkeypatch)
    path = tmp_path / TIMES
    clock = Clock(path, print)
    hands.passes(5)
    clock.opened(0)
    phases = ["stop", "batch", "step", "log", "stop", "batch", "step", "log"]
    for phase, taken in zip(phases, (0, 0, 0, 1, 1, 1, 1, 2), strict=True):
        clock.phase(phase, taken)  # each takes a second
        hands.passes(1)
    clock.phase("save", 2)
    hands.passes(3)
    clock.phase("step", 2)
    hands.passes(10)
    clock.mark(3)  # step 3 is lost
    hands.passes(100)
    clock = Clock(path, print)
    hands.passes(4)
    clock.opened(2)
    clock.phase("step", 2)
    hands.passes(7)
    clock.phase("evaluate", 3)
    hands.passes(2)
    clock.mark(3)
    found = account(goodput.read(path))
    assert found.starts == 2
    assert found.seconds == {
        "starting": 5 + 4,
        STEPS: 5,
        "waiting for data": 2,
        "compiling": 1 + 7,  # of each start the first step
        "evaluation": 2,
        LOST: 3 + 10,
        STOPPED: 100,
    }
    assert found.total == hands.now - 1000
    assert clock.goodput == pytest.approx(found.goodput) == 5 / found.total
    assert "2 starts" in str(found)


def test_a_damaged_line_is_left_out(tmp_path):
    clock = Clock(tmp_path / TIMES, print)
    clock.opened(0)
    with open(tmp_path / TIMES, "a") as file:
        file.write('{"start": 1.0, "from": 0, "st\n[]\n{"seconds": 3}\n')
    assert len(goodput.read(tmp_path / TIMES)) == 1
    assert account([]) is None
    assert goodput.read(tmp_path / "missing") == []


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path):
    told = []
    clock = Clock(tmp_path / "missing" / TIMES, told.append)
    for step in range(3):
        clock.mark(step)
    assert len(told) == 1
    assert "cannot be written" in told[0]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 12),  # steps until it dies
            st.integers(0, 100),  # what is lost of the checkpoints
            st.floats(0.1, 5),  # seconds of a step
            st.floats(0, 50),  # until it is started again
        ),
        min_size=1,
        max_size=6,
    )
)
def test_nothing_is_counted_twice_or_left_out(starts):
    """Brute force: who took each step last keeps its seconds; all others are lost."""
    now, kept, found, step = 0.0, {}, [], 0
    for steps, back, seconds, rest in starts:
        begin, first = now, step
        passed = 0.0
        found.append({"start": begin, "from": first, "step": step, "seconds": {STEPS: 0.0}})
        for _ in range(steps):
            step, passed = step + 1, passed + seconds
            kept[step] = seconds
            found.append({"start": begin, "from": first, "step": step, "seconds": {STEPS: passed}})
        now, end = begin + passed + rest, begin + passed
        step = max(step - back, 0)
    last = max(record["step"] for record in found if record["start"] == begin)
    of = account(found)
    assert of.starts == len(starts)
    assert of.total == pytest.approx(end)
    wanted = math.fsum(seconds for number, seconds in kept.items() if number <= last)
    assert of.seconds.get(STEPS, 0.0) == pytest.approx(wanted)


@pytest.mark.slow
def test_the_time_of_a_run_that_died_five_times_adds_up(tiny, tmp_path):
    tiny.train.num_steps, tiny.train.checkpoint_every = 24, 4
    began = time.time()
    for phase, step in (("step", 3), ("batch", 7), ("log", 11), ("evaluate", 16), ("save", 20)):
        with pytest.raises(MemoryError):
            train(check(tiny), tmp_path, watch=killed_at(phase, step))
        time.sleep(0.5)
    train(check(tiny), tmp_path)
    passed = time.time() - began
    of = account(goodput.read(tmp_path / TIMES))
    assert of.starts == 6
    assert passed - 1 < of.total <= passed
    assert of.seconds[STOPPED] >= 2.4
    assert of.seconds[LOST] > 0
    assert of.goodput == pytest.approx(records(tmp_path)[-1]["goodput"], abs=0.1)


def test_steps_are_traced(tiny, tmp_path, capsys):
    tiny.train.num_steps = 4
    train(check(tiny), tmp_path, profile=(3, 4))
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("train_step" in event.get("name", "") for event in events)
    marked = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, marked)) == [3, 4]
    assert "Profile of steps 3 to 4" in capsys.readouterr().out
    tiny.train.num_steps = 6
    train(check(tiny), tmp_path, profile=(3, 4))
    assert "No profile: the run is at step 4 already" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["5", "4:3"])
def test_a_profile_that_is_no_range_is_told(text, tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", f"--profile={text}", f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "it must be FROM:TO, such as 100:104" in done.stderr
    assert not (tmp_path / "run").exists()
