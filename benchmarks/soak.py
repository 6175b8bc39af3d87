"""Breaks a run again and again, and compares its end with one that nothing happened to.

  python benchmarks/soak.py --minutes=30
  python benchmarks/soak.py --minutes=2 --seed=7        the same choice of faults

Rounds of a small run (dropout, packing, accumulation, eight simulated devices, evaluation). While
it runs it is killed, killed in the middle of a save, asked to stop, or its disk is full. Between
two starts bits of its newest checkpoint are flipped, files cut off or taken away, folders emptied.
Every start must go on from the newest checkpoint that was left alone or a later one, and every
round end with the very bits of the undisturbed run, and with its log. Prints what was done, and
leaves with 1 when a round ends otherwise.
"""

import collections
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli
from albert.runtime.signals import EXIT_CODE

ROOT = Path(__file__).resolve().parent.parent
_MINUTES = flags.DEFINE_float("minutes", 30.0, "How long, but for the last round's end.")
_SEED = flags.DEFINE_integer("seed", None, "Of the faults. Default: another every time.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of a round.", lower_bound=20)
_DURING = ("SIGKILL", "SIGKILL while saving", "SIGTERM", "SIGINT twice", "full disk")
_BETWEEN = (
    "nothing",
    "flipped bit",
    "file cut off",
    "file removed",
    "empty folder",
    "unfinished folder",
)
_DEADLINE = 300  # seconds of a start; one that takes longer hangs


def main() -> int:
    seed = _SEED.value if _SEED.value is not None else random.randrange(10**6)
    rng = random.Random(seed)
    counts: collections.Counter = collections.Counter()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        print(
            f"seed {seed}; first a run of {_STEPS.value} steps that nothing happens to", flush=True
        )
        undisturbed = folder / "undisturbed"
        subprocess.run(
            _command(folder, undisturbed),
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
        )
        wanted = _outcome(undisturbed)
        minutes = 0.0
        while minutes < _MINUTES.value:
            counts["rounds"] += 1
            work = folder / f"round_{counts['rounds']}"
            _round(folder, work, environment, rng, counts)
            equal = _outcome(work) == wanted
            counts["rounds that ended in the same bits and figures"] += equal
            minutes = (time.monotonic() - begin) / 60
            ended = "the same bits" if equal else "OTHER BITS"
            print(
                f"[{minutes:.1f} min] round {counts['rounds']}: {ended}; {dict(counts)}", flush=True
            )
            if not equal:
                kept = Path(tempfile.mkdtemp(prefix="soak-failed-"))
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                print(f"Kept in {kept}.")
                return 1
            shutil.rmtree(work)
    width = max(map(len, counts))
    print(f"\nIn {minutes:.0f} minutes:")
    for what, number in sorted(counts.items()):
        print(f"  {what:<{width}}  {number:>6,}")
    return 0


def _command(folder: Path, workdir: Path) -> list[str]:
    fields = {
        "data.folder": folder / "prepared",
        "data.packing": 4,
        "data.max_documents": 400,
        "train.num_steps": _STEPS.value,
        "train.accumulation": 2,
        "train.checkpoint_every": 7,
        "train.eval_every": 40,
        "train.log_every": 3,
        "train.keep_last": 3,
        "train.keep_best": 1,
        "train.max_failed_saves": 2,
        "sharding.data": 4,
        "sharding.tensor": 2,
        "optimizer.warmup_steps": 10,
    }
    return [
        sys.executable,
        "train.py",
        "--config=configs/base.py:v1,tiny",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def _outcome(workdir: Path) -> tuple:
    """The digests of the last state's arrays, and the figures of every step."""
    text = (workdir / "checkpoints" / str(_STEPS.value) / "manifest.json").read_text()
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figures = [
        (record["group"], record["step"], record["loss"], record.get("grad_norm"))
        for record in records
    ]
    return json.loads(text)["leaves"], sorted(figures, key=str)


def _round(folder, work, environment, rng, counts) -> None:
    """A run from its first step to its last, whatever happens."""
    reached = 0
    damaged: set[int | None] = set()  # steps, by any of the starts so far
    while True:
        if reached:
            damaged.add(_damage(work, rng, counts))
        least = max((step for step in _finished(work) if step not in damaged), default=0)
        process = subprocess.Popen(
            _command(folder, work),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        counts["starts"] += 1
        fault = rng.choice(_DURING)
        _disturb(process, work, fault, rng)
        printed, _ = process.communicate(timeout=_DEADLINE)
        code = process.returncode
        if went_on := re.search(r"Resuming from the checkpoint of step (\d+)", printed):
            counts["runs recovered"] += 1
            counts["steps lost"] += max(0, reached - int(went_on[1]))
        elif reached >= 7:
            counts["begun anew"] += 1  # only where no checkpoint had been finished
            counts["steps lost"] += reached
        counts["checkpoints passed over"] += printed.count("is not sound")
        steps = [int(s) for s in re.findall(r"^step (\d+)/", printed, re.MULTILINE)]
        saved = re.search(r"at step (\d+), which is saved", printed)
        reached = max([reached if not steps else 0, *steps, int(saved[1]) if saved else 0])
        began = re.search(r"Compiling; then steps (\d+) to", printed)
        if began and int(began[1]) <= least:
            raise RuntimeError(f"It began at step {began[1]} and not from {least}:\n{printed}")
        if code == 0:
            return
        expected = {
            "SIGKILL": (-signal.SIGKILL,),
            "SIGKILL while saving": (-signal.SIGKILL,),
            # Before Python takes signals they end it as they end any program.
            "SIGTERM": (EXIT_CODE, -signal.SIGTERM),
            "full disk": (2,),
            "SIGINT twice": (EXIT_CODE, -signal.SIGINT, *(() if began else (1, 130))),
        }[fault]
        if code not in expected:
            raise RuntimeError(f"After {fault} the run left with {code}:\n{printed}")
        counts[f"during: {fault}"] += 1


def _disturb(process: subprocess.Popen, work: Path, fault: str, rng: random.Random) -> None:
    if fault == "SIGKILL while saving":
        deadline = time.monotonic() + rng.uniform(8, 20)
        while process.poll() is None:
            if time.monotonic() > deadline and any(
                (work / "checkpoints").glob("*-checkpoint-tmp*")
            ):
                time.sleep(rng.uniform(0, 0.03))
                break
            if time.monotonic() > deadline + 30:
                break
    else:
        time.sleep(rng.uniform(1, 22))
    if process.poll() is not None:
        return
    if fault.startswith("SIGKILL"):
        process.kill()
    elif fault == "SIGTERM":
        process.terminate()
    elif fault == "SIGINT twice":
        process.send_signal(signal.SIGINT)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
    else:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))


def _finished(work: Path) -> list[int]:
    """Steps whose checkpoints were finished, ascending."""
    return sorted(
        int(path.parent.name)
        for path in (work / "checkpoints").glob("*/manifest.json")
        if path.parent.name.isdecimal()
    )


def _damage(work: Path, rng: random.Random, counts: collections.Counter) -> int | None:
    """Something to the newest checkpoint, which is returned; there is always another that is left
    alone."""
    steps = _finished(work)
    what = rng.choice(_BETWEEN)
    if len(steps) < 2 or what == "nothing":
        return None
    newest = work / "checkpoints" / str(steps[-1])
    files = [path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size]
    victim = rng.choice(files)
    whole = victim.read_bytes()
    place = rng.randrange(len(whole))
    if what == "flipped bit":
        flipped = bytes([whole[place] ^ (1 << rng.randrange(8))])
        victim.write_bytes(whole[:place] + flipped + whole[place + 1 :])
    elif what == "file cut off":
        victim.write_bytes(whole[:place])
    elif what == "file removed":
        victim.unlink()
    elif what == "empty folder":
        (newest.parent / str(steps[-1] + 1)).mkdir(exist_ok=True)
    else:
        shutil.copytree(
            newest, newest.parent / f"{steps[-1] + 1}.orbax-checkpoint-tmp", dirs_exist_ok=True
        )
    counts[f"between: {what}"] += 1
    return steps[-1]


if __name__ == "__main__":
    cli.run(main)
