"""Where figures go: what a service gets over kills, failures and restarts; real ones offline."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from albert.runtime.fields import ConfigError
from albert.train import writers
from albert.train.config import as_plain, check, from_json
from albert.train.evaluate import Options, evaluate_run
from albert.train.loop import train
from albert.train.writers import WRITERS, MetricWriter, check_writers, sender
from albert.train.writers.base import About, Writer
from runs import records

ROOT = Path(__file__).resolve().parent.parent


class Fake(Writer):
    """A service in this process. `rows` is what it keeps: (group, step, figures)."""

    is_service = True
    rows: list
    pictures: list
    fails = 0  # so many times, before it works
    closed = 0

    def __init__(self, about):
        type(self).about = about
        self.fail()
        type(self).have = {}
        for group, step, _ in self.rows:
            self.have[group] = max(step, self.have.get(group, -1))

    def fail(self):
        if self.fails:
            type(self).fails -= 1
            raise ConnectionError("the service is down")

    def write(self, step, group, values):
        self.fail()
        self.rows.append((group, step, dict(values)))

    def write_picture(self, step, name, png):
        self.pictures.append((step, name, png))

    def close(self):
        type(self).closed += 1

    @staticmethod
    def place(about):
        return "The fake"


@pytest.fixture
def fake(monkeypatch):
    kind = type("Fresh", (Fake,), {"rows": [], "pictures": []})
    monkeypatch.setitem(WRITERS, "fake", kind)
    return kind


ALL = ("jsonl", "fake")


def start(folder, first_step=0, told=None, evaluated=()):
    about = About(folder, {"seed": 0}, first_step, evaluated)
    return MetricWriter(ALL, about, pytest.fail if told is None else told.append)


def test_a_service_gets_every_step_once_over_restarts(fake, tmp_path):
    """What it has and comes again is left out, what it lost is sent from the files."""
    first = start(tmp_path)
    for step in (2, 4, 6):
        first.write(step, "train", {"loss": 1.0 / step})
    first.write(4, "valid", {"loss": 0.5})
    first.close()
    assert [row[:2] for row in fake.rows] == [
        ("train", 2),
        ("train", 4),
        ("train", 6),
        ("valid", 4),
    ]
    # The checkpoint is of step 4, and the service has lost what it got last.
    del fake.rows[1], fake.rows[2]
    assert [row[:2] for row in fake.rows] == [("train", 2), ("train", 6)]
    fake.rows.pop()
    second = start(tmp_path, 4, evaluated=["valid"])
    for step in (6, 8):
        second.write(step, "train", {"loss": 1.0 / step})
    second.write_picture(8, "confusion", b"png")
    second.close()
    assert Counter(row[:2] for row in fake.rows) == Counter(
        [("train", 2), ("train", 4), ("train", 6), ("train", 8), ("valid", 4)]
    )
    assert dict(((g, s), v["loss"]) for g, s, v in fake.rows)["train", 4] == 0.25
    assert fake.pictures == [(8, "confusion", b"png")]
    assert fake.closed == 2
    # It has seen step 8; a start from step 4 sends nothing of that again.
    third = start(tmp_path, 4, evaluated=["valid"])
    for step in (6, 8, 10):
        third.write(step, "train", {"loss": 1.0 / step})
    third.close()
    assert len(fake.rows) == 6
    assert fake.rows[-1][:2] == ("train", 10)


def test_a_service_that_fails_is_told_once_and_tried_again(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(sender.Sender, "_wait", lambda self, seconds: time.sleep(0.01))
    fake.fails, told = 4, []
    writer = start(tmp_path, told=told)
    for step in (2, 4):
        writer.write(step, "train", {"loss": 1.0})
    writer.close()
    assert [row[:2] for row in fake.rows] == [("train", 2), ("train", 4)]
    assert told == [
        "Warning: The fake cannot be written: ConnectionError: the service is down. Training goes "
        "on; it is tried again."
    ]


def test_what_a_service_did_not_get_is_counted_and_comes_later(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "_WAITS", 0.2)
    fake.fails, told = 10**6, []
    writer = start(tmp_path, told=told)
    for step in (2, 4, 6):
        writer.write(step, "train", {"loss": 1.0})
    writer.close()
    assert len(told) == 2
    assert "The fake did not get 3 entries: ConnectionError: the service is down" in told[1]
    assert "sent when the run is resumed" in told[1]
    fake.fails = 0
    start(tmp_path, 6).close()
    assert [row[:2] for row in fake.rows] == [("train", 2), ("train", 4), ("train", 6)]


def test_a_service_that_hangs_keeps_no_run_waiting(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "_WAITS", 0.2)
    forever, told = threading.Event(), []
    monkeypatch.setattr(fake, "write", lambda *_: forever.wait())
    begin = time.monotonic()
    writer = start(tmp_path, told=told)
    for step in (2, 4):
        writer.write(step, "train", {"loss": 1.0})
    assert time.monotonic() - begin < 1
    writer.close()
    forever.set()
    assert len(told) == 1
    assert "The fake did not get 2 entries. Figures are in metrics.jsonl" in told[0]


def test_files_count_what_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    told = []
    writer = MetricWriter(("jsonl",), About(tmp_path, {}), told.append)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": 1.0})
    writer.close()
    assert len(told) == 2
    assert "metrics.jsonl cannot be written: Is a directory. Training goes on" in told[0]
    assert "metrics.jsonl could not be written 4 times" in told[1]


def test_a_run_that_is_stopped_and_resumed_is_whole_at_the_service(fake, tiny, tmp_path):
    tiny.train.writers = ("jsonl", "tensorboard", "fake")
    tiny.train.checkpoint_every = 4

    class Killed(Exception):
        pass

    def killed_at_6(phase, step):
        if (phase, step) == ("batch", 7):
            raise Killed

    config = check(tiny)
    with pytest.raises(Killed):
        train(config, tmp_path / "run", watch=killed_at_6)
    assert ("train", 4) in [row[:2] for row in fake.rows]
    train(config, tmp_path / "run")
    of_files = [
        (group, r["step"]) for group in ("train", "valid") for r in records(tmp_path / "run", group)
    ]
    assert sorted(row[:2] for row in fake.rows) == sorted(of_files)
    losses = {r["step"]: r["loss"] for r in records(tmp_path / "run")}
    assert {step: v["loss"] for group, step, v in fake.rows if group == "train"} == losses
    # What is evaluated afterwards is a run of its own there, however often.
    fake.rows.clear()
    for _ in range(2):
        evaluate_run(tmp_path / "run", "latest", Options())
    assert [row[:2] for row in fake.rows] == [("eval", 8), ("eval", 8)]
    assert fake.about.part == "eval"
    assert fake.about.kept("fake").name == "fake_eval.json"
    del WRITERS["fake"]  # as on a machine with a version that has no such writer
    with pytest.raises(ConfigError, match="writers has fake"):
        evaluate_run(tmp_path / "run", "latest", Options())


def test_what_is_missing_is_told_before_anything_is_started(tiny, tmp_path, monkeypatch):
    find = writers.importlib.util.find_spec
    monkeypatch.setattr(
        writers.importlib.util,
        "find_spec",
        lambda name, *more: None if name in ("wandb", "mlflow") else find(name, *more),
    )
    tiny.train.writers = ("jsonl", "wandb", "mlflow")
    with pytest.raises(ConfigError) as error:
        train(check(tiny), tmp_path / "run")
    assert error.value.problems == [
        f"train.writers has {name}, and {name} is not installed: "
        f"pip install -r requirements-{name}.txt"
        for name in ("wandb", "mlflow")
    ]
    assert not (tmp_path / "run").exists()
    for wrong, told in (
        (("jsonl", "wand"), "writers has wand; there is jsonl, tensorboard, wandb, mlflow"),
        (("tensorboard",), "jsonl must: resuming, sweeps and pictures read it"),
        (("jsonl", "jsonl"), "each may stand there once"),
    ):
        tiny.train.writers = wrong
        with pytest.raises(ConfigError, match=told):
            check(tiny)


def test_a_run_of_before_has_the_two_writers_of_then(tiny):
    old = as_plain(check(tiny))
    del old["train"]["writers"]
    assert from_json(old).train.writers == ("jsonl", "tensorboard")


# The real ones.

RUN = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from albert.train.writers import MetricWriter
from albert.train.writers.base import About

first, last, kill = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "kill"
about = About(Path({folder!r}), {{"seed": 0, "model": {{"sharing": "all"}}}}, first, ["valid"])
writer = MetricWriter(("jsonl", {name!r}), about, print)
for step in range(first + 1, last + 1):
    writer.write(step, "train", {{"loss": 1 / step, "bad": float("nan")}})
    if step % 5 == 0:
        writer.write(step, "valid", {{"loss": 2 / step}})
        writer.write_picture(step, "confusion", Path({picture!r}).read_bytes())
if kill:
    import time
    time.sleep(float(sys.argv[4]))
    os.kill(os.getpid(), signal.SIGKILL)
writer.close()
"""


def starts(name, tmp_path, environment):
    """Three starts, of which two are killed: one at once, one when something has arrived."""
    from matplotlib.figure import Figure

    picture, folder = tmp_path / "picture.png", tmp_path / "run"
    folder.mkdir()
    buffer = io.BytesIO()
    Figure(figsize=(1, 1)).savefig(buffer, format="png")
    picture.write_bytes(buffer.getvalue())
    text = RUN.format(root=str(ROOT), folder=str(folder), name=name, picture=str(picture))
    printed = []
    for arguments in (
        ("0", "12", "kill", "0"),
        ("10", "22", "kill", "12"),
        ("20", "30", "whole"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", text, *arguments],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == (-signal.SIGKILL if "kill" in arguments else 0), done.stderr
        printed.append(done.stdout)
    assert printed == ["", "", ""]  # no warnings
    return folder


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline_have_every_step_once(tmp_path):
    pytest.importorskip("wandb", reason="needs pip install -r requirements-wandb.txt")
    from wandb.proto.wandb_internal_pb2 import Record

    from albert.train.writers.wandb import _entries

    folder = starts("wandb", tmp_path, {"WANDB_MODE": "offline"})
    assert check_writers(("jsonl",), folder) is None
    identity = json.loads((folder / "wandb.json").read_text())["id"]
    files = sorted((folder / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(files) in (2, 3)  # the first start may have been killed before it had one
    rows, lines, configs = [], [], []
    for path in files:
        for entry in map(Record.FromString, _entries(path.read_bytes())):
            if entry.WhichOneof("record_type") == "history":
                items = entry.history.item
                rows.append({i.key or "/".join(i.nested_key): i.value_json for i in items})
                lines.append(entry.history.step.num)
            if entry.WhichOneof("record_type") == "run":
                configs.append({c.key: json.loads(c.value_json) for c in entry.run.config.update})
    steps = [int(row["train/step"]) for row in rows if "train/step" in row]
    assert sorted(steps) == list(range(1, 31))
    assert [float(r["train/loss"]) for r in rows if "train/step" in r] == [1 / s for s in steps]
    assert sorted(int(r["valid/step"]) for r in rows if "valid/step" in r) == [
        5,
        10,
        15,
        20,
        25,
        30,
    ]
    assert lines == list(range(len(lines)))  # none lies over another
    assert configs[0]["model"] == {"sharing": "all"}
    assert any(key.startswith("pictures/confusion") for row in rows for key in row)
    assert list((folder / "wandb").rglob("media/images/pictures/confusion*.png"))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_a_file_has_every_step_once(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs pip install -r requirements-mlflow.txt")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    client.search_experiments()  # makes the file, which a kill half-way would leave of no use
    folder = starts("mlflow", tmp_path, {"MLFLOW_TRACKING_URI": store})
    identity = json.loads((folder / "mlflow.json").read_text())["id"]
    history = client.get_metric_history(identity, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(s, 1 / s) for s in range(1, 31)]
    valid = client.get_metric_history(identity, "valid/loss")
    assert sorted(m.step for m in valid) == [5, 10, 15, 20, 25, 30]
    run = client.get_run(identity)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "model.sharing": "all"}
    assert client.list_artifacts(identity, "images")


@pytest.mark.peers
def test_weights_and_biases_without_a_key_are_refused_at_once(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs pip install -r requirements-wandb.txt")
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ConfigError, match="knows no key here: `wandb login`, or set WANDB_API_KEY"):
        check_writers(("jsonl", "wandb"), tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_writers(("jsonl", "wandb"), tmp_path)
