"""Everything that is to be known of one GPU: a list of measurements, as far as the time goes.

  python benchmarks/gpu.py --output=FOLDER                      and again, until it leaves with 0
  python benchmarks/gpu.py --output=FOLDER --item=ceilings      only that item
  python benchmarks/gpu.py --output=FOLDER --rehearse           tiny sizes, on any device

What is worth most comes first: what the card reaches (copies, our products, attention kernels) and
every size's step, the tests marked gpu, Hugging Face's step beside ours, the levers one by one, a
trace, other ways to compile, and what else there is if time is left. Nothing is started that would
probably take longer than what is left of --minutes, which one call may take, or of --budget, which
all of them may: by the seconds of what is in FOLDER, a tenth kept back for starting machines. What
the budget leaves out is told before anything runs. The default is three calls of nine minutes.

An item is a process with a time limit. What it measured stands at once in FOLDER/results.json, and
for a reader in FOLDER/results.md. An item that is there, of the same card and commit, is not run
again, also when it failed; --again runs those that failed. Compiled programs are kept in FOLDER for
all items. A step that does not fit is tried with half the rows. Leaves with 75 when there is more
to do within the budget, with 1 when something failed.
"""

import ctypes
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli
from albert.runtime import RunError
from albert.runtime.console import tell
from albert.runtime.paths import replace_text
from albert.runtime.signals import EXIT_CODE

_OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", required=True)
_ITEM = flags.DEFINE_multi_string("item", None, "Only items of this name; --item=? tells names.")
_REHEARSE = flags.DEFINE_bool("rehearse", False, "Tiny sizes, to see that everything works.")
_MINUTES = flags.DEFINE_float("minutes", 9.0, "How long this call may take.", lower_bound=0.0)
_BUDGET = flags.DEFINE_float("budget", 30.0, "Minutes for all calls together.", lower_bound=0.0)
_AGAIN = flags.DEFINE_bool("again", False, "Run items that failed once more.")
# Of the processes that this one starts. Under the name of another module --help leaves it out.
_MEASURE: flags.FlagHolder = flags.DEFINE_flag(
    flags.Flag(flags.ArgumentParser(), None, "measure", None, "A measurement, as JSON"),
    module_name="benchmarks.gpu",
)
_ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 2  # times the expected seconds are the limit of an item
_USABLE = 0.9  # of the budget; the rest goes into starting machines and copying
_REHEARSED = 60  # seconds expected of an item of a rehearsal
_NO_ROOM = re.compile(r"RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)
_DEPTHS = {"base": 12, "large": 24, "xlarge": 24, "xxlarge": 12}
_PREDICTIONS = {512: 77, 128: 20, 64: 10, 32: 5}  # by length
# MFU in % at L 512 on (H100, H200), predicted by tools/compiled.py from the bytes and operations
# that the compiler reports, before anything ran; of "fused" with a loop over the depth, of
# "unrolled" without.
PREDICTED = {
    "fused": {"base": (31, 37), "large": (38, 43), "xlarge": (51, 56), "xxlarge": (61, 65)},
    "unrolled": {"base": (37, 42), "large": (43, 48), "xxlarge": (64, 67)},
}
# How the step may be compiled otherwise.
COMPILED = {
    "O1": "JAX_OPTIMIZATION_LEVEL=O1",
    "cublaslt": "XLA_FLAGS=--xla_gpu_enable_cublaslt=true",
    "no triton": "XLA_FLAGS=--xla_gpu_enable_triton_gemm=false",
    "cudnn products": "XLA_FLAGS=--xla_gpu_cudnn_gemm_fusion_level=1",
    "deterministic": "--config.train.deterministic=true",
}


class Item(NamedTuple):
    name: str
    seconds: float  # that it probably takes on an H200
    command: tuple[str, ...]  # behind the interpreter; prints JSON on its last line
    rows: int = 0  # of a step, to begin with; 0: it is none
    size: str = ""  # of the model, where there is a prediction

    def with_rows(self, rows: int) -> list[str]:
        more = [f"--config.train.batch_size={rows}"] if rows else []
        return [sys.executable, *self.command, *more]

    @property
    def told(self) -> str:
        """A command line that measures the same."""
        if self.rows:
            return shlex.join(["python", *self.with_rows(self.rows)[1:]])
        return shlex.join(["python", "benchmarks/gpu.py", "--output=FOLDER", f"--item={self.name}"])


def plan(rehearse: bool, folder: Path, backend: str = "") -> list[Item]:
    """Every item, what is worth most first. `backend`: of jax, where it is known."""
    lengths = (64, 32) if rehearse else (512, 128)
    tokens = 128 if rehearse else 16384

    def measure(name, seconds, kind, **what):
        text = json.dumps({"kind": kind, "output": str(folder), **what})
        command = ("benchmarks/gpu.py", f"--output={folder}", f"--measure={text}")
        return Item(name, _REHEARSED if rehearse else seconds, command)

    def step(name, seconds, size, variants, *more, length=lengths[0]):
        command = (
            "benchmarks/step_time.py",
            f"--config=configs/{size}.py{':tiny' if rehearse else ''}",
            f"--config.data.seq_length={length}",
            f"--config.data.max_predictions={_PREDICTIONS[length]}",
            f"--steps={1 if rehearse else 4}",
            *(f"--variant={variant}: {fields}".strip() for variant, fields in variants.items()),
            *more,
        )
        predicted = size if length == lengths[0] and not rehearse else ""
        rehearsed = _REHEARSED * (4 if "--peer" in more else len(variants))
        expected = rehearsed if rehearse else seconds
        return Item(name, expected, command, tokens // length, predicted)

    def unrolled(size):
        return {"unrolled": f"--config.model.scan_unroll={3 if rehearse else _DEPTHS[size]}"}

    fused = {"fused": ""}
    plain = {"plain": "--config.model.attention=xla"}
    packed = {"padded": "", "packed": "--config.data.packing=2"}
    remat = {name: f"--config.model.remat={name}" for name in ("dots", "full")}
    long, short = lengths
    return [
        measure(
            "ceilings",
            90,
            "ceilings",
            copied=2**22 if rehearse else 2**31,
            hidden=(32, 64) if rehearse else (768, 1024, 2048, 4096),
            lengths=lengths,
            tokens=tokens,
        ),
        step(f"base, L {long}", 60, "base", fused),
        measure("tests marked gpu", 150, "tests", backend=backend),
        *(step(f"{s}, L {long}", 80, s, fused) for s in ("xxlarge", "large", "xlarge")),
        step("base and Hugging Face", 220, "base", fused, "--peer"),
        step("base, levers", 150, "base", plain | fused | unrolled("base")),
        step(f"base, L {short}", 80, "base", fused | plain, length=short),
        step("base, trace", 40, "base", fused, f"--trace={folder / 'trace'}"),
        step("xxlarge, levers", 200, "xxlarge", plain | unrolled("xxlarge")),
        *(
            step(f"base, {name}", 60, "base", fused | {name: fields})
            for name, fields in COMPILED.items()
        ),
        step("base, padded or packed", 90, "base", packed, "--padding=0.5"),
        step("large, levers", 240, "large", plain | unrolled("large")),
        step("xlarge, levers", 240, "xlarge", plain | unrolled("xlarge")),
        step("base, remat", 110, "base", fused | remat),
        step("large and Hugging Face", 240, "large", fused, "--peer"),
        step("base and Hugging Face, packed", 220, "base", packed, "--padding=0.5", "--peer"),
    ]


def within(items: list[Item], seconds: float) -> tuple[list[Item], list[Item]]:
    """Those that so many seconds probably are enough for, the first ones first, and the others."""
    fit, others = [], []
    for item in items:
        (fit if item.seconds <= seconds else others).append(item)
        seconds -= item.seconds if item.seconds <= seconds else 0
    return fit, others


def key_of(name: str, card: str, commit: str, rehearse: bool) -> dict:
    """What makes a result that of an item here and now."""
    return {"name": name, "card": card, "commit": commit, "rehearsal": rehearse}


def has_failed(result: dict) -> bool:
    return "failed" in result or any("failed" in row for row in result.get("rows", ()))


def left_to_do(items: list[Item], results: list[dict], key: Callable, again: bool) -> list[Item]:
    """Items without a result, and those that failed if they are wanted again."""

    def is_done(item):
        found = found_result(results, key(item.name))
        return found is not None and not (again and has_failed(found))

    return [item for item in items if not is_done(item)]


def found_result(results: list[dict], key: dict) -> dict | None:
    return next((one for one in results if key.items() <= one.items()), None)


def chosen(items: list[Item], names: list[str]) -> list[Item]:
    """Items of these names; raises RunError for a name that is none of theirs."""
    known = [item.name for item in items]
    for name in names:
        if name not in known:
            listed = "".join(f"\n  {one}" for one in known)
            raise RunError(f"There is no item {name!r}. There is{listed}")
    return [item for item in items if not names or item.name in names]


# What is measured in processes of their own: each gives {"rows": [...]}, or {"skipped": why}.


def _seconds(run: Callable, *arguments) -> float:
    """Of one run, the median of five times as many as take a twentieth of a second."""
    import jax

    def timed(times):
        begin = time.perf_counter()
        for _ in range(times):
            out = run(*arguments)
        jax.block_until_ready(out)  # a device does one after the other
        return (time.perf_counter() - begin) / times

    timed(1)
    times = max(1, min(20, math.ceil(0.05 / timed(2))))
    return statistics.median(timed(times) for _ in range(5))


def measure_card(output: str) -> dict:
    """On what is measured, and at which commit."""
    import jax

    from benchmarks.step_time import commit

    return {
        "card": jax.devices()[0].device_kind,
        "number": jax.device_count(),
        "backend": jax.default_backend(),
        "commit": commit(),
    }


def measure_ceilings(
    output: str, copied: int, hidden: list[int], lengths: list[int], tokens: int
) -> dict:
    """What a step is made of, each alone, and the card's description. One that fails is told."""
    parts: list[tuple[str, Callable[[], dict]]] = [
        ("target configuration", lambda: measure_target(output)),
        ("copies", lambda: measure_copy(copied)),
        *((f"products, H {h}", partial(measure_products, h, tokens)) for h in hidden),
        *((f"attention, L {n}", partial(measure_attention, n, tokens)) for n in lengths),
    ]
    rows: list[dict] = []
    for name, run in parts:
        try:
            found = run()
            rows += found.get("rows", [{"what": name, "not here": found.get("skipped", "")}])
        except Exception as error:
            traceback.print_exc()  # into the item's log
            rows.append({"what": name, "failed": f"{type(error).__name__}: {error}"[:300]})
    return {"rows": rows}


def measure_target(output: str) -> dict:
    """The card as compilers want it described, for tests that compile for it without one."""
    import jax

    try:
        from jax._src.lib import xla_client

        text = xla_client.get_topology_for_devices(jax.devices()).target_config
    except Exception as error:  # jax promises none of this
        return {"skipped": f"no target configuration here: {type(error).__name__}: {error}"[:300]}
    path = Path(output) / "target_config.txt"
    replace_text(path, str(text))
    return {
        "rows": [{"what": "target configuration", "file": path.name, "letters": len(str(text))}]
    }


def measure_copy(size: int) -> dict:
    import jax
    import jax.numpy as jnp

    x = jnp.ones(size // 4, jnp.float32)
    seconds = _seconds(jax.jit(lambda x: x + 1), x)
    rate = 2 * x.nbytes / seconds / 1e9
    return {"rows": [{"what": f"read and write {size / 1e9:.3g} GB", "GB/s": round(rate, 1)}]}


def measure_products(hidden: int, tokens: int) -> dict:
    """The products of a layer in bfloat16, and those of their weights' gradients."""
    import jax
    import jax.numpy as jnp

    from albert.models.lean import product

    rows = []
    shapes = {"q, k, v": (1, 3), "context": (1, 1), "wide": (1, 4), "narrow": (4, 1)}
    for name, (wide_in, wide_out) in shapes.items():
        shape = (wide_in * hidden, wide_out * hidden)
        # A GPU is slower at numbers than at zeros: they take more power.
        key = jax.random.key(0)
        x = jax.random.normal(key, (tokens, shape[0]), jnp.bfloat16)
        dy = jax.random.normal(key, (tokens, shape[1]), jnp.bfloat16)
        kernel = jax.random.normal(key, shape, jnp.float32)
        cast = kernel.astype(jnp.bfloat16)

        def forward(x, kernel, cast):
            return product(x, kernel, 1, cast=cast)

        def gradient(x, kernel, cast, dy):
            return jax.vjp(lambda kernel: product(x, kernel, 1, cast=cast), kernel)[1](dy)

        flops = 2 * tokens * math.prod(shape)
        for what, run, arguments in (
            (name, forward, (x, kernel, cast)),
            (f"{name}, weights' gradient", gradient, (x, kernel, cast, dy)),
        ):
            rate = flops / _seconds(jax.jit(run), *arguments) / 1e12
            rows.append({"what": what, "shape": f"{tokens} x {shape}", "TFLOP/s": round(rate, 3)})
    return {"rows": rows}


def measure_attention(length: int, tokens: int) -> dict:
    """Every kernel that works here, on rows without padding; heads as many as base has."""
    import jax
    import jax.numpy as jnp

    from albert.models.attention import KERNELS, Use, here

    heads, width, rows = 12, 64, tokens // length
    use = here(Use(length, width, "bfloat16", 0.0, False, None))
    q, k, v = jax.random.normal(jax.random.key(0), (3, rows, length, heads, width), jnp.bfloat16)
    mask = jnp.ones((rows, length), jnp.int32)
    forward_flops = 4 * rows * heads * length * length * width
    found: list[dict] = []
    for name, kernel in KERNELS.items():
        if problems := kernel.problems(use):
            found.append({"what": f"{name}, L {length}", "not here": "; ".join(problems)})
            continue

        def forward(q, k, v, mask, kernel=kernel):
            return kernel.attend(q, k, v, kernel.prepare(mask, None, 1))

        def both(q, k, v, mask, forward=forward):
            out, pull = jax.vjp(lambda *qkv: forward(*qkv, mask), q, k, v)
            return pull(out)

        of = f"{name}, L {length}"
        for what, run, times in ((of, forward, 1), (f"{of}, and backward", both, 3)):
            seconds = _seconds(jax.jit(run), q, k, v, mask)
            rate = times * forward_flops / seconds / 1e12
            found.append({"what": what, "ms": round(1000 * seconds, 4), "TFLOP/s": round(rate, 3)})
    return {"rows": found}


def measure_tests(output: str, backend: str) -> dict:
    """How the tests of attention kernels that need a GPU end."""
    tests = "tests/test_attention.py"
    if not (_ROOT / tests).is_file():
        return {"skipped": f"{tests} is not there"}
    if backend != "gpu":
        return {"skipped": f"they need a GPU of NVIDIA's, and this is a {backend}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", tests, "-m", "gpu", "-n", "0", "-q", "-rf"],
        cwd=_ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    failed = re.findall(r"^FAILED (.*)", done.stdout, re.MULTILINE)
    rows: list[dict] = [{"what": tests, "passed": 0, **counts}]
    if done.returncode:
        rows += [{"what": "test", "failed": name[:300]} for name in failed]
        if not failed:
            told = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
            raise RuntimeError(f"pytest left with {done.returncode} and said: {told[-1]}")
    return {"rows": rows}


MEASURES: dict[str, Callable[..., dict]] = {
    "card": measure_card,
    "ceilings": measure_ceilings,
    "tests": measure_tests,
}


# What starts them.


def run(command: list[str], limit: float, log: Path, environment: dict[str, str]) -> dict:
    """What the command's last line holds; or "failed" and why.

    It and what it started end with this process, and at the limit.
    """

    def prepare():
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    with open(log, "a+", encoding="utf-8", errors="replace") as said:
        print("$", shlex.join(command), file=said, flush=True)
        behind = said.tell()
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=_ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=prepare,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                return {"failed": f"it took over {limit:.0f} s", "timed_out": True}
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        said.seek(behind)
        told = said.read().strip().splitlines() or ["nothing"]
        said.write(printed)
    lines = printed.strip().splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1])
    return {"failed": f"it left with {process.returncode} and said: {told[-1][:400]}"}


def measured(item: Item, limit: float, folder: Path, environment: dict[str, str]) -> dict:
    """What an item gives; of a step that does not fit, with half the rows, until it does."""
    rows = item.rows
    tried: list[int] = []
    deadline = time.monotonic() + limit
    while True:
        left = deadline - time.monotonic()
        outcome = run(item.with_rows(rows), left, folder / "log.txt", environment)
        if "variants" in outcome:
            outcome = of_step(item, outcome, rows)
        reasons = [outcome.get("failed", "")]
        reasons += [row.get("failed", "") for row in outcome.get("rows", ()) if row.get("is_ours")]
        if rows < 2 or not any(map(_NO_ROOM.search, reasons)):
            return outcome | ({"did_not_fit": tried} if tried else {})
        tried.append(rows)
        tell(f"{item.name}: {rows} rows do not fit, trying {rows // 2}")
        rows //= 2


def of_step(item: Item, outcome: dict, rows: int) -> dict:
    """What step_time.py printed, as rows of a table, with what was predicted."""
    card = 1 if "H200" in outcome["devices"] else 0 if "H100" in outcome["devices"] else None
    found = []
    best = outcome["peers"].get(outcome.get("best_peer"))
    for of_whom in ("variants", "peers"):
        for name, of in outcome[of_whom].items():
            row: dict = {"what": name, "rows": rows, "is_ours": of_whom == "variants"}
            if "failed" in of:
                found.append(row | {"failed": of["failed"]})
                continue
            row |= {
                "ms a step": round(1000 * of["step_seconds"], 3),
                "fastest": round(1000 * of["fastest"], 3),
                "slowest": round(1000 * of["slowest"], 3),
                "tokens/s": round(of["tokens_per_second"]),
                "real tokens/s": round(of["real_tokens_per_second"]),
                "MFU %": round(100 * of["mfu"], 2),
            }
            if best:
                times = of["real_tokens_per_second"] / best["real_tokens_per_second"]
                row["times the best peer"] = round(times, 2)
            if card is not None and item.size in PREDICTED.get(name, {}):
                row["predicted MFU %"] = PREDICTED[name][item.size][card]
            if "memory_bytes" in of:
                row["memory GB"] = round(of["memory_bytes"] / 1e9, 2)
            if "compile_seconds" in of and not of["from_cache"]:
                row["compile s"] = round(of["compile_seconds"], 1)
            found.append(row)
    return {"rows": found, "printed": outcome}


def page(results: list[dict]) -> str:
    """All results, as Markdown."""
    from tools.claims.page import table

    def cell(value):
        return str(value).replace("|", "\\|")

    def order(one):
        return one["card"], one["commit"], one["rehearsal"]

    lines = ["# Measurements", ""]
    lines += ["Predicted MFU is from the bytes and operations that the compiler reports."]
    where = None
    for one in sorted(results, key=order):
        if where != (where := order(one)):
            what = "Rehearsal with tiny sizes, whose figures say nothing" if where[2] else "Results"
            lines += ["", f"## {what}: {where[0]}, commit {where[1]}"]
        lines += ["", f"### {one['name']}", ""]
        for name in ("failed", "skipped"):
            if name in one:
                lines += [f"{name}: {one[name]}"]
        if rows := one.get("rows"):
            heads = list(dict.fromkeys(head for row in rows for head in row if head != "is_ours"))
            lines += table(heads, [[cell(row.get(head, "")) for head in heads] for row in rows])
        if "did_not_fit" in one:
            lines += ["", f"Did not fit: {', '.join(map(str, one['did_not_fit']))} rows."]
        lines += ["", f"`{one['command']}`, {one['seconds']:.0f} s"]
    return "\n".join(lines) + "\n"


def read_results(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} holds no results of this program; name another --output") from error


def keep(folder: Path, results: list[dict], result: dict, key: dict) -> None:
    """Writes a result down, in place of one of the same key."""
    results[:] = [one for one in results if not key.items() <= one.items()] + [result]
    replace_text(folder / "results.json", json.dumps({"results": results}, indent=1) + "\n")
    replace_text(folder / "results.md", page(results))


def main() -> int:
    begin = time.monotonic()
    if _MEASURE.value:
        what = json.loads(_MEASURE.value)
        print(json.dumps(MEASURES[what.pop("kind")](**what)))
        return 0
    folder = Path(_OUTPUT.value).expanduser().resolve()
    items = chosen(plan(_REHEARSE.value, folder), _ITEM.value or [])
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--output is {folder}, a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(folder / "results.json")
    environment = dict(os.environ)
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    deadline = begin + 60 * _MINUTES.value
    ask = [sys.executable, "benchmarks/gpu.py", f"--output={folder}"]
    ask.append('--measure={"kind": "card", "output": ""}')
    here = run(ask, 300, folder / "log.txt", environment)
    if "failed" in here:
        raise RunError(f"No device can be asked: {here['failed']}")
    tell(f"{here['number']} x {here['card']}, commit {here['commit']}")
    names = {item.name for item in items}
    items = [i for i in plan(_REHEARSE.value, folder, here["backend"]) if i.name in names]

    def key(name):
        return key_of(name, here["card"], here["commit"], _REHEARSE.value)

    waiting = left_to_do(items, results, key, _AGAIN.value)
    if len(waiting) < len(items):
        tell(f"{len(items) - len(waiting)} of {len(items)} items are there already")
    spent = sum(of["seconds"] for of in results if key(of["name"]).items() <= of.items())
    usable = _USABLE * 60 * _BUDGET.value - spent
    waiting, left_out = within(waiting, usable)
    tell(f"{sum(i.seconds for i in waiting) / 60:.0f} of {max(usable, 0) / 60:.0f} min are planned")
    if left_out:
        listed = "".join(f"\n  {item.name}: {item.seconds:.0f} s" for item in left_out)
        tell(f"--budget={_BUDGET.value:g} leaves out{listed}")
    late = []
    for item in waiting:
        left = deadline - time.monotonic()
        if item.seconds > min(left, usable):
            late.append(item.name)
            continue
        tell(item.name)
        limit = min(_PATIENCE * item.seconds, left, usable)
        started = time.monotonic()
        outcome = measured(item, limit, folder, environment)
        took = time.monotonic() - started
        usable -= took
        if outcome.pop("timed_out", False) and limit == left < usable:
            late.append(item.name)  # the call's end cut it off, not the budget: the next one may do
            continue
        result = key(item.name) | {"command": item.told, "seconds": took, **outcome}
        keep(folder, results, result, key(item.name))
        tell(f"   {outcome.get('failed') or outcome.get('skipped') or f'{took:.0f} s'}")
    spare = [item for item in left_out if item.seconds <= usable]
    of_now = [found_result(results, key(item.name)) for item in items]
    failed = [one["name"] for one in of_now if one and has_failed(one)]
    tell(f"Results are in {folder / 'results.md'}.")
    if failed:
        tell(f"Failed, wholly or in part: {'; '.join(failed)}. See log.txt there; --again.")
    if late:
        tell(f"No time was left for: {'; '.join(late)}. The same command goes on.")
        return EXIT_CODE
    if spare:
        tell("What was left out fits now, since others were faster. The same command goes on.")
        return EXIT_CODE
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
