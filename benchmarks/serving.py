"""What a service can take, and what becomes of it when it is offered twice that.

  python tools/serve.py --model=runs/reviews --port=8000
  python benchmarks/serving.py --url=http://127.0.0.1:8000 --path=/classify --minutes=10

  python benchmarks/serving.py --config=configs/base.py --tokenizer=30k-clean.model --minutes=2

The first asks a service that runs, the second starts one with weights drawn at random, which take
as long as any. Needs pip install -r requirements-serve.txt.

First requests come as fast as they are answered, --clients at a time, for --seconds_alone: what the
service can take. Then they come by the clock, with random gaps, whether others are answered or not:
half of that, and for --minutes --times of it. Each is one text of --words English words or fewer.
Prints requests by status, latencies of those that were answered, how late the clock was itself, the
most rows in the queue, and the service's memory; the last line is JSON, which --output keeps.
Leaves with 1 when the service broke off, answered anything but 200 and 429, let its queue grow over
its limit, or has grown by more than --growth_mb between the first minute and the end.
"""

import asyncio
import collections
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

ROOT = Path(__file__).resolve().parent.parent
_URL = flags.DEFINE_string("url", None, "A service that runs. Default: one is started.")
_CONFIG = cli.define_config("configs/base.py")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "SentencePiece vocabulary of the one started.")
_SERVE = flags.DEFINE_multi_string(
    "serve", [], "More flags for tools/serve.py, such as --serve=--queue=64."
)
_PATH = flags.DEFINE_enum(
    "path", "/embed", ["/embed", "/fill-mask", "/classify", "/tag"], "What is asked."
)
_TOKEN = flags.DEFINE_string("token", None, "Of the service, where it needs one.")
_WORDS = flags.DEFINE_integer("words", 40, "Of a text at most.", lower_bound=1)
_CLIENTS = flags.DEFINE_integer("clients", 32, "At a time, to find what it takes.", lower_bound=1)
_ALONE = flags.DEFINE_float("seconds_alone", 20.0, "Of finding what it takes.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 10.0, "Of offering more.", lower_bound=0.01)
_TIMES = flags.DEFINE_float("times", 2.0, "As much as it takes is offered.", lower_bound=0.01)
_GROWTH = flags.DEFINE_float("growth_mb", 50.0, "Of memory, that is taken for none.")
_SEED = flags.DEFINE_integer("seed", 0, "Of texts and gaps.")
_OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the figures.")
_TEXT = (
    "the old letter was read by the captain in winter when nobody in the village could say where "
    "the water of the river had gone and the teacher asked whether music would help against the "
    "quiet of the long evening under the bridge"
)
_HELD = 2000  # connections at once: what is offered beyond them waits, and counts as late
_WATCHED = 1.0  # seconds between two looks at the service's own figures
_DEADLINE = 90.0  # seconds of a request: the service gives up before


class Client:
    """HTTP/1.1 by hand over connections that stay open: it takes little of a machine that the
    service needs as well."""

    def __init__(self, url: str, token: str | None):
        parts = urllib.parse.urlsplit(url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = f"Host: {parts.netloc}\r\nContent-Type: application/json\r\n"
        if token:
            self._head += f"Authorization: Bearer {token}\r\n"
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """(status, content); raises OSError or asyncio.IncompleteReadError when it is broken off,
        TimeoutError when nothing comes."""
        async with asyncio.timeout(_DEADLINE):
            while True:
                reused = bool(self._free)
                if reused:
                    reader, writer = self._free.pop()
                else:
                    reader, writer = await asyncio.open_connection(*self._address)
                try:
                    method = "GET" if body is None else "POST"
                    length = len(body or b"")
                    head = (
                        f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {length}\r\n\r\n"
                    )
                    writer.write(head.encode() + (body or b""))
                    await writer.drain()
                    top = await reader.readuntil(b"\r\n\r\n")
                except (OSError, asyncio.IncompleteReadError):
                    writer.close()
                    if reused:  # closed by the service since: nothing was sent in vain
                        continue
                    raise
                size = re.search(rb"(?i)content-length: *(\d+)", top)
                content = await reader.readexactly(int(size[1]) if size else 0)
                if b"connection: close" in top.lower():
                    writer.close()
                else:
                    self._free.append((reader, writer))
                return int(top.split(b" ", 2)[1]), content

    async def figures(self) -> dict[str, float]:
        """The service's own: samples of /metrics that have no label."""
        status, text = await self.ask("/metrics")
        if status != 200:
            raise OSError(f"/metrics answers {status}: {text[:200].decode(errors='replace')}")
        lines = [line for line in text.decode().splitlines() if not re.search("^#|{", line)]
        return {name: float(value) for name, value in map(str.split, lines)}


class Tally:
    """What became of requests."""

    def __init__(self):
        self.statuses: collections.Counter[str] = collections.Counter()
        self.answered: list[float] = []  # seconds of those with 200
        self.refused: list[float] = []  # of those with 429
        self.late: list[float] = []  # seconds from when they were due to when they were sent
        self.said: dict[str, str] = {}  # an answer of each status but 200
        self.begin = time.perf_counter()

    async def ask(self, client: Client, body: bytes, due: float | None = None) -> None:
        begin = time.perf_counter()
        if due is not None:
            self.late.append(begin - due)
        try:
            status, content = await client.ask(_PATH.value, body)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.statuses["broken off"] += 1
            self.said.setdefault("broken off", repr(error))
            return
        took = time.perf_counter() - begin
        self.statuses[str(status)] += 1
        if status == 200:
            self.answered.append(took)
        else:
            self.said.setdefault(str(status), content.decode(errors="replace"))
            if status == 429:
                self.refused.append(took)

    def facts(self) -> dict:
        seconds = time.perf_counter() - self.begin
        return {
            "seconds": seconds,
            "statuses": dict(self.statuses),
            "answered_per_second": len(self.answered) / seconds,
            "offered_per_second": sum(self.statuses.values()) / seconds,
            "latency_ms": percentiles(self.answered),
            "refused_ms": percentiles(self.refused),
            "late_ms": percentiles(self.late),
            "said": self.said,
        }


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Of times in seconds, in milliseconds; None of fewer than two."""
    if len(seconds) < 2:
        return None
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    chosen = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "most": max(seconds)}
    return {name: round(1000 * value, 1) for name, value in chosen.items()}


def bodies(rng: random.Random, count: int = 500) -> list[bytes]:
    """Requests, each with a text of its own length."""
    known = _TEXT.split()
    made = []
    for _ in range(count):
        words = [rng.choice(known) for _ in range(rng.randint(1, _WORDS.value))]
        if _PATH.value == "/fill-mask":
            words[rng.randrange(len(words))] = "[MASK]"
        made.append(json.dumps({"texts": [" ".join(words)]}).encode())
    return made


async def as_it_takes(client: Client, asked: list[bytes], seconds: float) -> Tally:
    """Every client asks again as soon as it is answered."""
    tally = Tally()

    async def one(number: int) -> None:
        while time.perf_counter() - tally.begin < seconds:
            await tally.ask(client, asked[number % len(asked)])
            number += _CLIENTS.value

    await asyncio.gather(*(one(number) for number in range(_CLIENTS.value)))
    return tally


async def by_the_clock(
    client: Client, asked: list[bytes], per_second: float, seconds: float, rng: random.Random
) -> tuple[Tally, list[dict[str, float]]]:
    """Requests with exponential gaps, whatever becomes of them; and the service's own figures."""
    tally = Tally()
    watched: list[dict[str, float]] = []
    tasks: set[asyncio.Task] = set()

    async def watch() -> None:
        while True:
            seen = await client.figures()
            watched.append(seen | {"at": time.perf_counter() - tally.begin})
            await asyncio.sleep(_WATCHED)

    watching = asyncio.create_task(watch())
    due = tally.begin
    while due - tally.begin < seconds:
        due += rng.expovariate(per_second)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        while len(tasks) >= _HELD:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(tally.ask(client, rng.choice(asked), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if watching.done():
            break
    if tasks:
        await asyncio.wait(tasks)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    watched.append(await client.figures() | {"at": time.perf_counter() - tally.begin})
    return tally, watched


def told(name: str, facts: dict) -> str:
    latency, late = facts["latency_ms"], facts["late_ms"]
    text = (
        f"{name}: {facts['offered_per_second']:.1f} requests/s offered, "
        f"{facts['answered_per_second']:.1f} answered; statuses {facts['statuses']}"
    )
    if latency:
        text += (
            f"; answered in p50 {latency['p50']:.0f}, p90 {latency['p90']:.0f}, p99 "
            f"{latency['p99']:.0f}, at most {latency['most']:.0f} ms"
        )
    if facts["refused_ms"]:
        text += f"; refused in p50 {facts['refused_ms']['p50']:.0f}, p99 "
        text += f"{facts['refused_ms']['p99']:.0f} ms"
    return text + (f"; the clock was p99 {late['p99']:.0f} ms late" if late else "")


async def measure(url: str) -> dict:
    from albert.runtime import RunError

    rng = random.Random(_SEED.value)
    client, asked = Client(url, _TOKEN.value), bodies(rng)
    try:
        await client.figures()
        warm = await as_it_takes(client, asked, 2)
    except OSError as error:
        raise RunError(f"{url} cannot be asked: {error}") from error
    if set(warm.statuses) - {"200", "429"}:
        raise RunError(f"{url}{_PATH.value} answers {warm.facts()['said']}")
    alone = (await as_it_takes(client, asked, _ALONE.value)).facts()
    takes = alone["answered_per_second"]
    print(told(f"{_CLIENTS.value} clients", alone), flush=True)
    half, _ = await by_the_clock(client, asked, takes / 2, _ALONE.value, rng)
    half_facts = half.facts()
    print(told("half of it", half_facts), flush=True)
    start = await client.figures()
    tally, watched = await by_the_clock(
        client, asked, _TIMES.value * takes, 60 * _MINUTES.value, rng
    )
    facts = tally.facts()
    print(told(f"{_TIMES.value:g} times it", facts), flush=True)
    # From the first minute on, or the first tenth: filling the queue once takes its memory.
    settled = min(60.0, 6 * _MINUTES.value)
    memory = [(seen["at"], seen["process_resident_memory_bytes"] / 2**20) for seen in watched]
    first = next(value for at, value in memory if at >= settled)
    return {
        "alone": alone,
        "half": half_facts,
        "overload": facts,
        "times": _TIMES.value,
        "minutes": _MINUTES.value,
        "queue_limit": start["albert_queue_limit"],
        "queue_most": max(seen["albert_queue_rows"] for seen in watched),
        "memory_mb": {
            "before": round(start["process_resident_memory_bytes"] / 2**20, 1),
            "settled": round(first, 1),
            "most": round(max(value for _, value in memory), 1),
            "end": round(memory[-1][1], 1),
            "every_tenth": [round(v, 1) for _, v in memory[:: max(1, len(memory) // 10)]],
        },
    }


def start_service(folder: Path) -> tuple[subprocess.Popen, str]:
    """tools/serve.py with random weights of --config; (process, its address)."""
    import numpy as np

    from albert.data.tokenizer import Tokenizer
    from albert.interop import formats
    from albert.interop.weights import PRETRAINED, Weights, parameter_shapes
    from albert.runtime import RunError
    from albert.runtime.fields import ConfigError

    if not _TOKENIZER.value:
        raise ConfigError(["--tokenizer: name a vocabulary for the service, or one with --url"])
    tokenizer = Tokenizer(Path(_TOKENIZER.value).expanduser())
    config = cli.checked(_CONFIG, needs_text=False)
    heads = PRETRAINED | {"classifier": {"labels": 2}, "tokens": {"labels": 9}}
    rng = np.random.default_rng(_SEED.value)
    params = {
        path: rng.normal(path.endswith("scale"), 0.02, shape).astype(np.float32)
        for path, shape in parameter_shapes(config.model, heads).items()
    }
    formats.write(
        Weights(config.model, params, tokenizer=tokenizer, heads=heads), folder / "random", "albert"
    )
    ability = {"/embed": "encode", "/fill-mask": "fill_mask"}.get(_PATH.value, _PATH.value[1:])
    command = [
        *(sys.executable, str(ROOT / "tools" / "serve.py"), f"--model={folder / 'random'}"),
        *("--port=0", f"--abilities={ability}", *_SERVE.value),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"(http://\S+) says", line):
            return process, found[1]
    raise RunError(f"The service did not start; it left with {process.wait()}.")


def verdicts(facts: dict) -> list[str]:
    """What is not as it should be."""
    wrong = []
    for part in ("alone", "half", "overload"):
        for status in {*facts[part]["statuses"]} - {"200", "429"}:
            wrong.append(f"{part}, {status}: {facts[part]['said'][status]}")
    if facts["queue_most"] > facts["queue_limit"]:
        wrong.append(f"{facts['queue_most']} rows waited, over {facts['queue_limit']}")
    memory = facts["memory_mb"]
    if memory["end"] - memory["settled"] > _GROWTH.value:
        wrong.append(f"memory grew from {memory['settled']} to {memory['end']} MB")
    return wrong


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        process = None
        url = (_URL.value or "").rstrip("/")
        if not url:
            process, url = start_service(Path(folder))
        try:
            facts = asyncio.run(measure(url))
            if process:
                process.send_signal(signal.SIGTERM)
                facts["left_with"] = process.wait(_DEADLINE)
        finally:
            if process and process.poll() is None:
                process.kill()
                process.wait()
    wrong = verdicts(facts)
    if facts.get("left_with"):
        wrong.append(f"asked to stop, the service left with {facts['left_with']}")
    memory = facts["memory_mb"]
    print(
        f"At most {facts['queue_most']:.0f} of {facts['queue_limit']:.0f} rows waited. Memory: "
        f"{memory['before']} MB before, {memory['settled']} when it had settled, at most "
        f"{memory['most']}, {memory['end']} at the end."
    )
    for sentence in wrong:
        print(f"Not as it should be: {sentence}")
    facts |= {
        "command": " ".join(sys.argv),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "wrong": wrong,
    }
    text = json.dumps(facts)
    if _OUTPUT.value:
        Path(_OUTPUT.value).expanduser().write_text(text + "\n")
    print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    cli.run(main)
