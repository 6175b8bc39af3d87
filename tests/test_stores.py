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

import pytest

from albert.runtime.paths import PlaceError, place
from runs import command, launch, wait_for

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("gcsfs", "gcp_storage_emulator")


def test_other_stores_are_refused_with_a_sentence():
    with pytest.raises(PlaceError, match=r"s3://bucket/run: runs are kept on this machine's file"):
        place("s3://bucket/run")
    assert place("~/runs") == Path.home() / "runs"


# The emulator forgets the header with an object's generation, which TensorStore reads.
SERVER = """
import sys, threading
from gcp_storage_emulator.handlers import objects

original = objects.download

def download(request, response, storage, *arguments, **more):
    original(request, response, storage, *arguments, **more)
    try:
        names = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]
    except Exception:
        pass  # not there: the answer says so already

objects.download = download
from gcp_storage_emulator.server import create_server

create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
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
