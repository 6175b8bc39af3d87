"""What finished runs left behind, and how to compare it."""

import concurrent.futures
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from albert.checkpoints.store import Checkpoints

ROOT = Path(__file__).resolve().parent.parent


def final_params(workdir, step):
    """The parameters of a checkpoint as they lie on disk."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        return checkpoints.restore_arrays(step, "params")


def assert_bit_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def records(workdir, group="train"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["group"] == group]


def command(tiny_config, workdir, *extra):
    """The command line of the tiny config, for a process of its own."""
    c = tiny_config
    return [
        sys.executable,
        "train.py",
        "--config=configs/base.py:v1,tiny",
        f"--workdir={workdir}",
        f"--config.data.train_sources={c.data.train_sources[0]}",
        f"--config.data.tokenizer={c.data.tokenizer}",
        f"--config.data.folder={c.data.folder}",
        f"--config.model.vocab_size={c.model.vocab_size}",
        "--config.data.seq_length=32",
        "--config.data.max_predictions=6",
        "--config.data.max_documents=0",
        "--config.train.eval_rows=40",
        "--config.train.num_steps=40",
        "--config.train.checkpoint_every=5",
        "--config.train.eval_every=15",
        "--config.sharding.data=4",
        "--config.sharding.tensor=2",
        *extra,
    ]


def launch(arguments, **options):
    return subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def printed_by(processes, timeout=400):
    """What each of some processes has printed when all have ended. Where one has not after
    `timeout` seconds, the test fails with what all of them printed and where each of them is."""
    # Read at once: one that waits for its pipe to be read would keep the other.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        printed = [threads.submit(lambda p=process: p.communicate()[0]) for process in processes]
        late = concurrent.futures.wait(printed, timeout).not_done
        for process in processes if late else ():
            process.send_signal(signal.SIGABRT)  # faulthandler prints the stack of every thread
        texts = [future.result() for future in printed]
    if late:
        pytest.fail(f"{len(late)} of {len(processes)} ran for {timeout} s:\n" + "\n".join(texts))
    return texts


def one_device() -> dict[str, str]:
    """The environment without simulated devices, which take most of the time of small steps."""
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}


def launch_together(commands, environments=None, devices=8):
    """A process for each command, which meet over gloo, each with its share of the simulated
    devices. environments: what more each finds in its own."""
    together = {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace(
            "count=8", f"count={devices // len(commands)}"
        ),
        "JAX_NUM_PROCESSES": str(len(commands)),
    }
    if len(commands) > 1:
        # Below the ports that systems give to clients.
        together["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{20000 + random.randrange(12000)}"
    return [
        launch(command, env={**os.environ, **more, **together, "JAX_PROCESS_ID": str(number)})
        for number, (command, more) in enumerate(
            zip(commands, environments or [{}] * len(commands), strict=True)
        )
    ]


def run_together(arguments, processes, devices=8):
    """What each of some processes prints that run a program together; of one what it prints
    alone."""
    together = launch_together([arguments] * processes, devices=devices)
    printed = printed_by(together)
    assert [process.returncode for process in together] == [0] * processes, "\n".join(printed)
    return printed


def wait_for(process, words):
    """Reads what a process prints until it says this."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if words in line:
            return
    pytest.fail("".join(printed))
