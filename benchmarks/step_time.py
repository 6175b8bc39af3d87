"""Times training steps of a config, and of variants of it, on whatever devices are here.

  python benchmarks/step_time.py --config=configs/base.py --config.train.batch_size=64
  python benchmarks/step_time.py --config=configs/base.py --config.train.batch_size=8 \\
      --config.data.seq_length=128 --config.data.max_predictions=20 \\
      --config.model.dtype=float32 --peer                  the row of two CPU cores
  python benchmarks/step_time.py --config=configs/base.py --config.train.batch_size=32 \\
      --variant="plain: --config.model.attention=xla" --variant="fused:" \\
      --variant="cublaslt: XLA_FLAGS=--xla_gpu_enable_cublaslt=true"
  python benchmarks/step_time.py --config=configs/base.py --config.train.batch_size=32 \\
      --padding=0.5 --variant="packed: --config.data.packing=2" --peer

A variant is a name, a colon, and what differs from --config: fields as on the command line, or
variables of the environment. All are measured in one run, a step of each in turn, --repeats times.
Those with the same environment share a process; on a TPU, which one process holds, all have to.

Rows are random tokens; the last --padding of each is padding, but not of rows with data.packing,
which are filled with so many examples. Memory is what a device's allocator held at most, or on a
CPU what the compiler asks for; where several variants share a process it is the compiler's too.

--peer times Hugging Face's AlbertForPreTraining in PyTorch on the batch of --config, in a process
of its own (pip install -r requirements-peers.txt); --peers says which. A peer is words joined by
"-": its attention (eager, sdpa, or cudnn: sdpa with cuDNN's kernel first), compiled
(torch.compile), gathered (only masked positions go through the vocabulary, which its own class does
not do), float32 (without autocast where --config has 16 bits). Without padding it is given no mask,
which is faster. Ratios are of real tokens/s, to the best of those that are not gathered.

--products times every matrix product of a step of --config alone, in XLA and, with --peer, in
PyTorch: which of them XLA is behind in, and their share of the first variant's step. With every
step come the page faults and the seconds in the system that it took.

Prints a table, and one JSON line.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli
from albert.runtime.console import tell
from benchmarks import processes
from benchmarks.products import torch_product, xla_product

_ROOT = Path(__file__).resolve().parent.parent
_CONFIG = cli.define_config("configs/base.py")
_VARIANT = flags.DEFINE_multi_string(
    "variant", None, 'What to time in place of --config: "NAME: --config.FIELD=VALUE ...".'
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "How often each is timed.", lower_bound=5)
_STEPS = flags.DEFINE_integer("steps", 1, "Steps in a row that are timed at once.", lower_bound=1)
_PADDING = flags.DEFINE_float(
    "padding", 0.0, "Share of a row that is padding.", lower_bound=0.0, upper_bound=0.95
)
_PEER = flags.DEFINE_bool("peer", False, "Time Hugging Face ALBERT in PyTorch as well.")
_PEERS = flags.DEFINE_list(
    "peers", None, "Which peers, such as sdpa,eager-compiled; by default those that may be fastest."
)
_TRACE = flags.DEFINE_string(
    "trace", "", "Folder for jax.profiler's trace of three steps of the first variant."
)
_PRODUCTS = flags.DEFINE_bool("products", False, "Time each matrix product of a step as well.")
# Of the processes that this one starts. Under the name of another module --help leaves it out.
_ROLE: flags.FlagHolder = flags.DEFINE_flag(
    flags.Flag(flags.ArgumentParser(), None, "role", None, "A key of _ROLES"),
    module_name="benchmarks.step_time",
)
_TRACED = 3  # steps of a trace
_PEER_WORDS = ("eager", "sdpa", "cudnn", "compiled", "gathered", "float32")
_ON_CPU = ("sdpa", "eager", "sdpa-compiled", "eager-compiled", "sdpa-compiled-gathered")
_ON_CUDA = ("cudnn-compiled", "sdpa-compiled", "eager-compiled", "sdpa", "cudnn-compiled-gathered")


class Variant(NamedTuple):
    name: str
    config: dict  # plain, by `dataclasses.asdict`
    environment: dict[str, str]


def variants_of(texts: list[str], values) -> list[Variant]:
    """The variants of a ConfigDict; raises ConfigError with all that is wrong."""
    from albert.runtime.fields import ConfigError

    found: list[Variant] = []
    problems: list[str] = []
    for text in texts:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if not (colon and name) or name.startswith("-"):
            problems.append(
                f"--variant={text!r} has no name; write NAME: --config.FIELD=VALUE, with the colon"
            )
            continue
        if name in (variant.name for variant in found):
            problems.append(f"two variants are named {name!r}")
        try:
            found.append(_variant(name, rest, values))
        except ConfigError as error:
            problems += [f"variant {name!r}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return found


def _variant(name: str, text: str, values) -> Variant:
    import copy
    import dataclasses

    from ml_collections import config_flags

    from albert.runtime.fields import ConfigError
    from albert.train.config import check, split_overrides

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError([f"{text!r} cannot be read: {error}"]) from error
    environment = [word for word in words if re.match(r"[A-Z][A-Z0-9_]*=", word)]
    kept, problems = split_overrides([word for word in words if word not in environment])
    for word in kept:
        if not re.match(r"--?(no)?config\.\w+(\.\w+)*(=|$)", word):
            problems.append(f"{word!r} is neither --config.FIELD=VALUE nor VARIABLE=VALUE")
    if problems:
        raise ConfigError(problems)
    own = flags.FlagValues()
    arguments = [sys.argv[0], *kept]
    changed = config_flags.DEFINE_config_dict(
        "config", copy.deepcopy(values), flag_values=own, sys_argv=arguments
    )
    own(arguments)
    config = dataclasses.asdict(check(changed.value, needs_text=False))
    return Variant(name, config, dict(word.split("=", 1) for word in environment))


def peers_of(names: list[str]) -> list[str]:
    """The names; raises ConfigError for those that are none of a peer."""
    from albert.runtime.fields import ConfigError

    def is_peer(name):
        first, *words = name.split("-")
        return first in _PEER_WORDS[:3] and set(words) <= set(_PEER_WORDS[3:])

    if strange := [name for name in names if not is_peer(name)]:
        ways = f"{', '.join(_PEER_WORDS[:3])}, and behind it -{', -'.join(_PEER_WORDS[3:])}"
        raise ConfigError([f"--peers: {name!r} is no peer; there is {ways}" for name in strange])
    return names


def _peers_for(devices: str, dtype: str) -> list[str]:
    """Those that may be the fastest."""
    if "NVIDIA" in devices:
        return list(_ON_CUDA)
    more = [] if dtype == "float32" else [f"{peer}-float32" for peer in _ON_CPU]
    return [*_ON_CPU, *more]


def batch_of(config, padding: float) -> dict:
    """Random rows whose last share is padding, those that are packed excepted."""
    import numpy as np

    from tools.claims.measure import random_rows

    packing = config.data.packing
    batch = random_rows(config, packing)
    length = config.data.seq_length
    is_padding = np.arange(length) >= max(round((1 - padding) * length), 3)
    if is_padding.any() and not packing:
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            batch[name] = np.where(is_padding, 0, batch[name])
        masked = ~is_padding[batch["mlm_positions"]]
        for name in ("mlm_positions", "mlm_labels", "mlm_weights"):
            batch[name] = batch[name] * masked.astype(batch[name].dtype)
    return batch


# What runs in processes of their own. Each makes a function that runs one step, and one that waits
# for all of them, with what there is to tell of it.


def our_step(config: dict, padding: float):
    import flax.linen as nn
    import jax
    import jaxlib

    from albert.models.config import DTYPES
    from albert.tasks.pretraining import Pretraining
    from albert.train.config import check_devices, from_json, parts_of, with_dtype
    from albert.train.hardware import peak_flops
    from albert.train.optimizers import make_optimizer
    from albert.train.program import memory
    from albert.train.sharding import batch_sharding, make_mesh, put_batch
    from albert.train.step import shard_training

    of = with_dtype(from_json(config), None, tell)
    check_devices(of, {}, jax.device_count())
    peak, origin = peak_flops(DTYPES[of.model.dtype])
    optimizer, schedule = make_optimizer(of.optimizer, of.train.num_steps)
    mesh = make_mesh(of.sharding)
    _, create, step_function = shard_training(
        Pretraining(of),
        optimizer,
        schedule,
        parts_of(of, mesh.size),
        of.seed,
        mesh,
        of.sharding,
        of.train.spike_factor,
        of.train.deterministic,
        of.train.reduce_dtype,
    )
    batch = batch_of(of, padding)
    rows = put_batch(batch, batch_sharding(mesh, of.sharding))
    state = create()
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    begin = time.perf_counter()
    with jax.set_mesh(mesh), nn.logical_axis_rules(of.sharding.rules):
        compiled = step_function.lower(state, rows).compile()
    seconds = time.perf_counter() - begin

    def step():
        nonlocal state
        state, _ = compiled(state, rows)

    facts = {
        "dtype": of.model.dtype,
        "compile_seconds": seconds,
        "from_cache": any(event.endswith("cache_hits") for event in events),
        "real_tokens": int(batch["attention_mask"].sum()),
        "peak_flops": peak * jax.device_count(),
        "peak_origin": origin,
        "memory_bytes": memory(compiled, jax.default_backend() == "tpu")["peak"],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": f"jax {jax.__version__}, jaxlib {jaxlib.__version__}",
    }
    return step, lambda: jax.block_until_ready(state), facts


def our_memory() -> int | None:
    """The most bytes that a device's allocator held so far; None of a CPU."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def our_trace(step, wait, folder: str) -> None:
    import jax

    with jax.profiler.trace(folder):
        for _ in range(_TRACED):
            step()
        wait()


def peer_step(config: dict, padding: float, peer: str):
    import torch
    import transformers
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from albert.interop.weights import released_groups
    from albert.train.config import from_json

    of = from_json(config)
    attention, *words = peer.split("-")
    model_config = of.model
    model = transformers.AlbertForPreTraining._from_config(
        transformers.AlbertConfig(
            vocab_size=model_config.vocab_size,
            embedding_size=model_config.embedding_size,
            hidden_size=model_config.hidden_size,
            num_hidden_layers=model_config.num_hidden_layers,
            num_hidden_groups=released_groups(model_config, "The peer"),
            inner_group_num=model_config.inner_group_num,
            num_attention_heads=model_config.num_attention_heads,
            intermediate_size=model_config.intermediate_size,
            hidden_dropout_prob=model_config.hidden_dropout_prob,
            attention_probs_dropout_prob=model_config.attention_probs_dropout_prob,
            max_position_embeddings=model_config.max_position_embeddings,
        ),
        attn_implementation="eager" if attention == "eager" else "sdpa",
    )
    cuda = torch.cuda.is_available()
    if attention == "cudnn" and not cuda:
        raise RuntimeError("cuDNN's attention needs a GPU of NVIDIA's")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # by itself it may take fewer
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as jax does
    device = "cuda" if cuda else "cpu"
    dtype = torch.float32 if "float32" in words else getattr(torch, model_config.dtype)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rows = {name: torch.from_numpy(value) for name, value in batch_of(of, padding).items()}
    real = int(rows["attention_mask"].sum())
    labels = torch.where(rows["mlm_weights"] > 0, rows["mlm_labels"], -100).long()
    positions = rows["mlm_positions"].long()
    if "gathered" not in words:
        wide = torch.full(rows["input_ids"].shape, -100)
        # Filling stands at position 0, which is never masked, and writes what is there.
        labels = wide.scatter_(1, positions, labels)
    inputs = {
        "input_ids": rows["input_ids"].long(),
        "token_type_ids": rows["token_type_ids"].long(),
        "attention_mask": rows["attention_mask"].long(),
    }
    if not padding:  # then it needs none, and is faster without
        del inputs["attention_mask"]
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    labels, positions, order = (
        tensor.to(device) for tensor in (labels, positions, rows["sop_labels"].long())
    )
    cross_entropy = torch.nn.functional.cross_entropy

    def loss_of_all():
        return model(**inputs, labels=labels, sentence_order_label=order).loss

    def loss_of_gathered():
        sequence, pooled = model.albert(**inputs, return_dict=True)[:2]
        wanted = positions[..., None].expand(-1, -1, sequence.shape[-1])
        logits = model.predictions(sequence.gather(1, wanted))
        words_loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
        return words_loss + cross_entropy(model.sop_classifier(pooled), order)

    loss_of = loss_of_gathered if "gathered" in words else loss_of_all
    if "compiled" in words:
        loss_of = torch.compile(loss_of)
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    first = [SDPBackend.CUDNN_ATTENTION, *kernels]

    def step():
        chosen = sdpa_kernel(first, set_priority=True) if attention == "cudnn" else None
        with chosen or contextlib.nullcontext():
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = loss_of()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait():
        if cuda:
            torch.cuda.synchronize()

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return (
        step,
        wait,
        {"dtype": str(dtype).removeprefix("torch."), "real_tokens": real, "versions": versions},
    )


def peer_memory() -> int | None:
    """The most bytes that tensors took since this was asked for last; None of a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


_ROLES = {
    "albert": (our_step, our_memory),
    "huggingface": (peer_step, peer_memory),
    "xla": (xla_product, our_memory),
    "torch": (torch_product, peer_memory),
}


def steps_of(make, memory):
    """Makes steps and runs them, as `answer` of processes.py is asked to; see `Process.ask`."""
    made: dict = {}

    def handle(request: dict) -> dict:
        name = request["name"]
        try:
            if "make" in request:
                made.pop(name, None)  # its arrays are in no one's way then
                *made[name], facts = make(**request["make"])
                return facts
            step, wait = made[name]
            if "trace" in request:
                our_trace(step, wait, request["trace"])
                return {}
            return timed(step, wait, request["steps"]) | {"memory_bytes": memory()}
        except Exception:
            made.pop(name, None)
            raise

    return handle


def timed(step, wait, steps: int) -> dict:
    """Seconds of a step, the mean of `steps`, and what it asks of the system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    seconds = time.perf_counter() - begin
    now = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds / steps,
        "page_faults": (now.ru_minflt - used.ru_minflt) / steps,
        "system_seconds": (now.ru_stime - used.ru_stime) / steps,
        "user_seconds": (now.ru_utime - used.ru_utime) / steps,
    }


# What starts these processes, and asks them in turn.


def started(role: str, environment: dict[str, str]):
    """A process of a role, which ends with the context."""
    more = dict(environment)
    if "XLA_FLAGS" in more:
        more["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {more['XLA_FLAGS']}".strip()
    return processes.started(__file__, [f"--role={role}"], more)


class Timed:
    """What is measured: the facts of it, and seconds of steps; or "failed" and why.

    Args:
      name: of the row.
      process: where it runs.
      config: what is computed, plain.
      shared: whether its process's memory is that of other variants too.
      make: more for the function that makes the step.
    """

    def __init__(self, name: str, process: processes.Process, config: dict, shared: bool, **make):
        from albert.tasks.pretraining import flops_per_token
        from albert.train.config import from_json

        of = from_json(config)
        self.name = name
        self._process = process
        self._shared = shared
        self._seconds: list[float] = []
        self._used: list[dict] = []
        self._tokens = of.train.batch_size * of.data.seq_length
        self._flops = self._tokens * flops_per_token(
            of.model, of.data.seq_length, of.data.max_predictions
        )
        self.facts = process.ask(name=name, make={"config": config, **make})
        for _ in range(2):  # PyTorch's compiler may want a second look
            self.measure(1)
        self._seconds.clear()
        self._used.clear()
        tell(f"{name}: {self.facts.get('failed') or 'ready'}")

    def measure(self, steps: int) -> None:
        if "failed" in self.facts:
            return
        answer = self._process.ask(name=self.name, steps=steps)
        if "failed" in answer:
            self.facts = answer
            return
        self._seconds.append(answer["seconds"])
        self._used.append(answer)
        if answer["memory_bytes"] is not None and not self._shared:
            self.facts["memory_bytes"] = answer["memory_bytes"]

    def trace(self, folder: str) -> None:
        if "failed" in (answer := self._process.ask(name=self.name, trace=folder)):
            tell(f"No trace of {self.name}: {answer['failed']}")

    def figures(self, peaks: dict[str, float]) -> dict:
        """As the JSON line has them. `peaks`: by dtype, the same for all."""
        if "failed" in self.facts:
            return self.facts
        median = statistics.median(self._seconds)
        peak = peaks.get(self.facts["dtype"]) or next(iter(peaks.values()))
        return self.facts | {
            "step_seconds": median,
            "fastest": min(self._seconds),
            "slowest": max(self._seconds),
            **{
                name: statistics.median(used[name] for used in self._used)
                for name in ("page_faults", "system_seconds", "user_seconds")
            },
            "tokens_per_second": self._tokens / median,
            "real_tokens_per_second": self.facts["real_tokens"] / median,
            "mfu": self._flops / median / peak,
        }


def measure_products(
    xla: processes.Process, torch: processes.Process | None, config: dict
) -> list[dict]:
    """Seconds of every product, the median of as many as of a step, a framework after the other."""
    from albert.train.config import from_json
    from benchmarks.products import products_of

    found = []
    for number, one in enumerate(products_of(from_json(config))):
        what = {"config": config, "number": number}
        answers = {"xla": xla.ask(name="product", make=what)}
        if torch:
            dtype = answers["xla"].get("dtype", config["model"]["dtype"])
            answers["torch"] = torch.ask(name="product", make=what | {"dtype": dtype})
        failed = {name: of["failed"] for name, of in answers.items() if "failed" in of}
        seconds: dict[str, list[float]] = {name: [] for name in answers}
        for turn in range(1 + _REPEATS.value):
            for name, process in (("xla", xla), ("torch", torch)):
                if process is None or name in failed:
                    continue
                of = process.ask(name="product", steps=5)
                if "failed" in of:
                    failed[name] = of["failed"]
                elif turn:
                    seconds[name].append(of["seconds"])
        row: dict = {"what": one.name, "times": one.times, "flops": one.flops, "failed": failed}
        medians = {n: statistics.median(of) for n, of in seconds.items() if n not in failed}
        found.append(row | medians)
    return found


def _lines_of_products(products: list[dict], step_seconds: float) -> list[str]:
    from tools.claims.page import table

    heads = ["product", "in a step", "GFLOP", "XLA GFLOP/s", "PyTorch GFLOP/s", "XLA % of step"]
    rows = []
    for of in products:
        rates = [
            f"{of['flops'] / of[name] / 1e9:,.0f}" if name in of else of["failed"].get(name, "")
            for name in ("xla", "torch")
        ]
        share = f"{100 * of['times'] * of['xla'] / step_seconds:.1f}" if "xla" in of else ""
        rows.append([of["what"], str(of["times"]), f"{of['flops'] / 1e9:.3f}", *rates, share])
    lines = table(heads, rows)
    for name, title in (("xla", "XLA"), ("torch", "PyTorch")):
        total = sum(of["times"] * of[name] for of in products if name in of)
        if all(name in of for of in products):
            share = 100 * total / step_seconds
            lines.append(f"All products of a step in {title}: {total:.3f} s, {share:.0f} % of it")
    return lines


def _lines(measured: dict[str, dict], best: str) -> list[str]:
    """A table, a column of it against the peer `best` if there is one."""
    from tools.claims.page import table

    heads = ["what", "ms a step (fastest to slowest)", "tokens/s", "real tokens/s", "MFU %"]
    heads += ["memory GB", "compile s", *(["times the best peer"] if best else [])]
    rows = []
    for name, of in measured.items():
        if "failed" in of:
            continue
        times = [1000 * of[key] for key in ("step_seconds", "fastest", "slowest")]
        compiled = f"{of['compile_seconds']:.1f}" if "compile_seconds" in of else ""
        cells = [
            name,
            "{:.1f} ({:.1f} to {:.1f})".format(*times),
            f"{of['tokens_per_second']:,.0f}",
            f"{of['real_tokens_per_second']:,.0f}",
            f"{100 * of['mfu']:.2f}",
            f"{of['memory_bytes'] / 1e9:.2f}" if "memory_bytes" in of else "",
            compiled + (", cached" if of.get("from_cache") else ""),
        ]
        if best:
            ratio = of["real_tokens_per_second"] / measured[best]["real_tokens_per_second"]
            cells.append(f"{ratio:.2f}")
        rows.append(cells)
    return table(heads, rows)


def _best(measured: dict[str, dict], names: list[str]) -> str:
    """The fastest of these that did not fail, or empty."""
    able = [name for name in names if "failed" not in measured[name]]
    return max(able, key=lambda name: measured[name]["real_tokens_per_second"], default="")


def commit() -> str:
    """Of this checkout; with a digest of the package where that was changed, or there is no git."""
    told = ""
    with contextlib.suppress(OSError):
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        told = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT).stdout.strip()
    if told and not told.endswith("-dirty"):
        return told
    digest = hashlib.sha256()
    for path in sorted((_ROOT / "albert").rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{told or 'unknown'}-{digest.hexdigest()[:8]}"


def main() -> None:
    if _ROLE.value:
        processes.answer(steps_of(*_ROLES[_ROLE.value]))
        return
    from albert.models.config import AUTO_DTYPE
    from albert.runtime import RunError

    cli.checked(_CONFIG, needs_text=False)
    variants = variants_of(_VARIANT.value or ["albert:"], _CONFIG.value)
    itself = variants_of(["itself:"], _CONFIG.value)[0].config
    peers = peers_of(_PEERS.value or [])
    if _TRACE.value:
        Path(_TRACE.value).mkdir(parents=True, exist_ok=True)
    environments = [dict(e) for e in dict.fromkeys(tuple(v.environment.items()) for v in variants)]
    # By itself jax takes three quarters of a GPU's memory for one process.
    several = bool(_PEER.value or peers) or len(environments) > 1
    common = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if several else {}
    with contextlib.ExitStack() as stack:
        started_for = [stack.enter_context(started("albert", common | of)) for of in environments]
        ours, theirs = [], []
        products: list[dict] = []
        for name, config, environment in variants:
            process = started_for[environments.index(environment)]
            shared = sum(variant.environment == environment for variant in variants) > 1
            ours.append(Timed(name, process, config, shared, padding=_PADDING.value))
        made = [one.facts for one in ours if "failed" not in one.facts]
        if not made:
            raise RunError(f"Nothing was measured. {ours[0].name}: {ours[0].facts['failed']}")
        if itself["model"]["dtype"] == AUTO_DTYPE:
            itself["model"]["dtype"] = made[0]["dtype"]
        if _PEER.value and not peers:
            peers = _peers_for(made[0]["devices"], itself["model"]["dtype"])
        if peers:
            process = stack.enter_context(started("huggingface", {}))
        for peer in peers:
            name = f"huggingface {peer}"
            theirs.append(Timed(name, process, itself, False, padding=_PADDING.value, peer=peer))
        for _ in range(_REPEATS.value):
            for one in ours + theirs:
                one.measure(_STEPS.value)
        if _TRACE.value:
            ours[0].trace(_TRACE.value)
        if _PRODUCTS.value:
            xla = stack.enter_context(started("xla", common | environments[0]))
            torch = stack.enter_context(started("torch", {})) if peers else None
            products = measure_products(xla, torch, itself)
    peaks = {of["dtype"]: of["peak_flops"] for of in reversed(made)}
    measured = {one.name: one.figures(peaks) for one in ours + theirs}
    best = _best(measured, [one.name for one in theirs if "gathered" not in one.name])
    best_gathered = _best(measured, [one.name for one in theirs if "gathered" in one.name])
    for line in _lines(measured, best):
        print(line)
    for name, of in measured.items():
        if "failed" in of:
            print(f"{name} failed: {of['failed']}")
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "devices": made[0]["devices"],
        "cores": len(os.sched_getaffinity(0)),
        "peak": made[0]["peak_origin"],
        "repeats": _REPEATS.value,
        "steps": _STEPS.value,
        "padding": _PADDING.value,
        "variants": {one.name: measured[one.name] for one in ours},
        "peers": {one.name: measured[one.name] for one in theirs},
    }
    if products:
        for line in _lines_of_products(
            products, next(of for of in measured.values() if "failed" not in of)["step_seconds"]
        ):
            print(line)
        facts["products"] = products
    told = f"commit {facts['commit']}, {facts['devices']}, {made[0]['versions']}"
    first = measured[ours[0].name]
    for kind, peer in (("peer", best), ("gathered_peer", best_gathered)):
        if peer and "failed" not in first:
            ratio = first["real_tokens_per_second"] / measured[peer]["real_tokens_per_second"]
            facts |= {f"best_{kind}": peer, f"ratio_to_{kind}": ratio}
            print(f"{ours[0].name}: {ratio:.2f} times {peer}")
    if best or best_gathered:
        told += f", {measured[best or best_gathered]['versions']}"
    print(f"{told}; peak of {facts['peak']}")
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main)
