"""A run whose workdir is on Google Cloud Storage, as its emulator has it."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from albert.runtime.paths import PlaceError, place
from runs import command, launch, launch_together, printed_by, wait_for

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("gcsfs", "gcp_storage_emulator")


def test_other_stores_are_refused_with_a_sentence():
    with pytest.raises(PlaceError, match=r"s3://bucket/run: runs are kept on this machine's file"):
        place("s3://bucket/run")
    assert place("~/runs") == Path.home() / "runs"


# The emulator forgets the header with an object's generation, which TensorStore reads. It also
# serves one connection after the other, so that one which a client opens and does not use yet keeps
# everyone waiting: here each has a thread, and one request at a time is handled.
SERVER = """
import http.server, sys, threading
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

class Threaded(http.server.ThreadingHTTPServer):
    request_queue_size = 128

http.server.HTTPServer = Threaded
handle, one = server.Router.handle, threading.Lock()

def handle_alone(self, method):
    with one:
        handle(self, method)

server.Router.handle = handle_alone

original = objects.download

def download(request, response, storage, *arguments, **more):
    original(request, response, storage, *arguments, **more)
    try:
        names = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]
    except Exception:
        pass  # not there: the answer says so already

objects.download = download
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
threading.Event().wait()
"""


@pytest.fixture
def store():
    """The environment of processes that find the emulator; it runs for as long as a test."""
    if any(importlib.util.find_spec(name) is None for name in PEERS):
        pytest.skip("needs requirements-peers.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        url = f"http://127.0.0.1:{port}"
        yield os.environ | {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        }
        server.kill()


def run(environment, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


READ = """
import json, sys
from albert.runtime.paths import place
folder = place(sys.argv[1])
print(json.dumps({
    "files": sorted(p.name for p in folder.iterdir()),
    "steps": sorted(p.name for p in (folder / "checkpoints").iterdir()),
    "leaves": json.loads((folder / "checkpoints/40/manifest.json").read_text())["leaves"],
    "log": [json.loads(x)["loss"] for x in (folder / "metrics.jsonl").read_text().splitlines()],
}))
"""


SWEEP = """
from tools.sweeps.grid import Sweep, choices


def get_sweep(argument=""):
    return Sweep(
        title="two rates",
        base="configs/base.py:tiny",
        runs=choices("optimizer.learning_rate", 1e-3, 2e-3),
        seeds=(0, 1),
        common={"data.train_sources": ("python-docs",)},
        evaluations=(("--step=best", "best_{step}.json"),),
    )
"""
WRITE = """
import sys
from albert.runtime.paths import place
from tools.sweeps.plan import load_sweep, plan
import dataclasses, json
run, *_ = plan(load_sweep(sys.argv[1]), place(sys.argv[2]), {}, (0,))
run.workdir.mkdir(parents=True, exist_ok=True)
config = json.dumps({"config": dataclasses.asdict(run.config)})
(run.workdir / "config.json").write_text(config)
for name in ("eval", "best"):
    (run.workdir / f"{name}_{run.config.train.num_steps}.json").write_text("{}")
"""


@pytest.mark.peers
def test_the_runs_of_a_sweep_that_are_not_finished_in_a_store_are_launched(tmp_path, store):
    (tmp_path / "sweep.py").write_text(SWEEP)
    there = [str(tmp_path / "sweep.py"), "gs://bucket/sweep"]
    command = ["tools/launch.py", "kubernetes", f"--sweep={there[0]}", f"--workdir={there[1]}"]
    command += ["--shape=v6e-1", "--image=r/albert:1", "--print"]

    def launched():
        done = run(store, *command)
        assert done.returncode == 0, done.stderr
        manifests = list(yaml.safe_load_all(done.stdout))
        assert len({manifest["metadata"]["name"] for manifest in manifests}) == len(manifests)
        return manifests

    whole = launched()
    assert len(whole) == 4
    assert "gs://bucket/sweep/learning_rate=0.001,seed=0" in str(whole[0])
    assert "launch/stages.sh" in str(whole[0])
    written = run(store | {"EPATH_USE_TF": "false", "PYTHONPATH": str(ROOT)}, "-c", WRITE, *there)
    assert written.returncode == 0, written.stderr
    assert launched() == whole[1:]
    nowhere = run(store | {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}, *command)
    assert nowhere.returncode == 2
    assert "What is finished in gs://bucket/sweep cannot be read" in nowhere.stderr


@pytest.mark.peers
def test_a_run_in_a_store_is_stopped_killed_and_ends_as_one_on_disk(tiny, tmp_path, store):
    local = subprocess.run(
        command(tiny, tmp_path / "local"), cwd=ROOT, capture_output=True, text=True
    )
    assert local.returncode == 0, local.stderr
    there = command(tiny, "gs://bucket/runs/a")
    process = launch(there, env=store)
    wait_for(process, "step 20/")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    process = launch(there, env=store)
    wait_for(process, "step 30/")
    process.kill()
    process.communicate()
    done = subprocess.run(there, cwd=ROOT, env=store, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "which is gone: taking the workdir over" in done.stdout
    assert "Resuming from the checkpoint of step" in done.stdout

    # Programs set it; elsewhere etils would read a store by TensorFlow where that is installed.
    library = store | {"EPATH_USE_TF": "false"}
    read = run(library, "-c", READ, "gs://bucket/runs/a")
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.splitlines()[-1])
    ours = json.loads(run(os.environ, "-c", READ, str(tmp_path / "local")).stdout)
    assert found["leaves"] == ours["leaves"]
    assert sorted(found["log"]) == sorted(ours["log"])
    wanted = {
        "checkpoints",
        "config.json",
        "eval_40.json",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer.model",
    }
    assert wanted <= set(found["files"])
    assert "running.json" not in found["files"]
    assert found["steps"] == ours["steps"]

    for arguments, words in (
        (("tools/check_checkpoint.py", "gs://bucket/runs/a"), "The newest sound one is step 40."),
        (("eval.py", "--workdir=gs://bucket/runs/a"), "MLM loss"),
        (("-c", "import albert; print(albert.load('gs://bucket/runs/a').step)"), "40"),
    ):
        done = run(library if arguments[0] == "-c" else store, *arguments)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


LOSSES = """
import json, sys
from albert.runtime.paths import place
lines = (place(sys.argv[1]) / "metrics.jsonl").read_text().splitlines()
print([x["loss"] for x in map(json.loads, lines) if x["group"] == "train"])
"""


COPY = """
import sys
from pathlib import Path
from albert.runtime.paths import place
here, there = Path(sys.argv[1]), place("gs://bucket/labelled")
for path in here.rglob("*.*"):
    (there / path.relative_to(here).as_posix()).write_bytes(path.read_bytes())
"""
LABELLED = """
import sys
from albert.data.labelled import squad
from albert.data.labelled.tables import records, table_problem
from albert.tasks import glue, race, tokens
folder = sys.argv[1]
for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
    assert table_problem(f"{folder}/{name}") is None
    print([record for _, record in records(f"{folder}/{name}")])
print(glue.read(f"{folder}/CoLA", "cola", "train"))
print(squad.read(f"{folder}/squad.json"))
print(race.read(f"{folder}/RACE", "train"))
print(tokens.read(f"{folder}/a.conll"))
print(table_problem(f"{folder}/b.csv"))
for read in (lambda: squad.read(f"{folder}/b.json"), lambda: tokens.read(f"{folder}/b.conll")):
    try:
        read()
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.peers
def test_labelled_files_are_read_from_a_store_as_from_a_disk(tmp_path, store):
    here = tmp_path / "labelled"
    (here / "CoLA").mkdir(parents=True)
    (here / "RACE/train/high").mkdir(parents=True)
    (here / "a.csv").write_text('text,label\n"a ""b""",1\nc,2\n')
    (here / "a.tsv").write_text("text\tlabel\na\t1\n")
    (here / "a.jsonl").write_text('{"text": "a\u2028b", "label": 1}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), here / "a.parquet")
    (here / "CoLA/train.tsv").write_text("gj04\t1\t\tIt is so.\ngj04\t0\t*\tSo it.\n")
    question = {"id": "q", "question": "Who?", "answers": [{"text": "Tom", "answer_start": 0}]}
    paragraph = {"context": "Tom ran.", "qas": [question]}
    (here / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    passage = {"article": "Tom ran.", "questions": ["Who?"], "options": [["A", "B"]]}
    line = json.dumps(passage | {"answers": ["B"], "id": "high1.txt"})
    (here / "RACE/train/high/1.txt").write_text(line)
    (here / "a.conll").write_text("Tom B-PER\nran O\n")
    store |= {"EPATH_USE_TF": "false"}
    assert run(store, "-c", COPY, str(here)).returncode == 0
    disk, there = (run(store, "-c", LABELLED, str(f)) for f in (here, "gs://bucket/labelled"))
    assert disk.returncode == there.returncode == 0, disk.stderr + there.stderr
    assert disk.stdout == there.stdout
    assert disk.stdout.splitlines()[-3:] == ["is not a file", "SourceError", "SourceError"]


@pytest.mark.peers
def test_two_hosts_learn_and_evaluate_from_what_was_prepared_on_a_bucket(tiny, tmp_path, store):
    """Each has a cache of its own and no text; what they learn is what one process learns from a
    folder on its disk."""
    text = tmp_path / "text.txt"
    text.write_bytes(Path(tiny.data.train_sources[0]).read_bytes())
    tiny.data.train_sources, tiny.data.tokenizer = (str(text),), ""
    tiny.data.folder = str(tmp_path / "prepared")
    short = ["--config.train.num_steps=10", "--config.train.log_every=2"]
    done = run(os.environ, *command(tiny, tmp_path / "alone", *short)[1:])
    assert done.returncode == 0, done.stderr
    tiny.data.folder = "gs://bucket/prepared"
    there = command(tiny, "gs://bucket/runs/b", *short)
    early = run_pair(there, store, tmp_path)
    assert [code for code, _ in early] == [2, 2], early
    assert all(
        "a job of several processes does not make it: run tools/prepare.py" in out
        for _, out in early
    )
    fields = [a for a in there if a.startswith("--config") and "sharding" not in a]
    made = run(store | {"XDG_CACHE_HOME": str(tmp_path / "maker")}, "tools/prepare.py", *fields)
    assert made.returncode == 0, made.stderr
    assert "in gs://bucket/prepared/corpus-" in made.stdout
    text.unlink()
    for arguments in (there, [sys.executable, "eval.py", "--workdir=gs://bucket/runs/b"]):
        ended = run_pair(arguments, store, tmp_path)
        assert [code for code, _ in ended] == [0, 0], "\n".join(out for _, out in ended)
        assert all("the text is gone" in out for _, out in ended)
        assert "MLM loss" in ended[0][1]
    for number in (0, 1):
        fetched = tmp_path / f"host{number}" / "albert" / "fetched"
        assert list(fetched.rglob("*.array_record-*"))
        assert list(fetched.rglob("sentence_lengths.npy"))
    losses = [
        json.loads(run(store | {"EPATH_USE_TF": "false"}, "-c", LOSSES, workdir).stdout)
        for workdir in ("gs://bucket/runs/b", str(tmp_path / "alone"))
    ]
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # A checkpoint that two processes wrote in pieces, read from the bucket by one.
    done = run(
        store,
        "tools/convert.py",
        "--input=gs://bucket/runs/b",
        f"--output={tmp_path / 'converted'}",
        "--format=huggingface",
    )
    assert done.returncode == 0, done.stderr
    assert "Missing: nothing." in done.stdout
    assert list((tmp_path / "converted").glob("*.safetensors"))
    named = ("--input=gs://bucket/runs/b", "--output=gs://bucket/c", "--format=albert")
    refused = run(store, "tools/convert.py", *named)
    assert refused.returncode == 2
    assert "--output is gs://bucket/c; a model is written to a folder of this" in refused.stderr


def run_pair(arguments, environment, tmp_path):
    """(exit code, what was printed) of two processes over gloo, each a host with its own cache."""
    caches = [{"XDG_CACHE_HOME": str(tmp_path / f"host{number}")} for number in (0, 1)]
    commands = [[*arguments, "--heartbeat_seconds=10"]] * 2
    pair = launch_together(commands, [environment | cache for cache in caches])
    return [(process.returncode, out) for out, process in zip(printed_by(pair), pair, strict=True)]
