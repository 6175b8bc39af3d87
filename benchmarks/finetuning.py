"""Steps per second of fine-tuning ALBERT-base, beside Hugging Face transformers on the same rows.

  python benchmarks/finetuning.py --data=glue_data/MRPC --tokenizer=30k-clean.model
  python benchmarks/finetuning.py --data=glue_data/MRPC --steps=2 --rounds=1 \\
      --config.model.hidden_size=32 --config.model.intermediate_size=64    only to try it

Needs pip install -r requirements-peers.txt; without torch and transformers ours is timed alone.
Random weights, the same in both; the task's own training rows, in the same batches; float32 on all
cores. Sizes, dropout and optimizer are those of --config, which may name any task of GLUE: what
differs is that theirs takes PyTorch's AdamW, fused, as their Trainer does. Each framework has a
process of its own. A round is --steps steps, of the same batches in every round, of each of these:

  padded    every row padded to --length: what their run_glue.py does by default
  longest   a batch is as long as its longest row: of ours the next of few lengths, which is what
            train.py does; of theirs that very length, as with --pad_to_max_length=False

Every length is compiled, and run once, before anything is timed. Batches are made before, as the
loop makes them ahead; handing them to the device is timed. Prints medians over rounds, and the
fastest and slowest of them; the last line is JSON.
"""

import contextlib
import importlib.util
import json
import os
import pickle
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_CONFIG = cli.define_config("configs/finetune/glue.py:mrpc")
_DATA = flags.DEFINE_string("data", "glue_data/MRPC", "The task's official folder.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "30k-clean.model", "SentencePiece vocabulary.")
_BATCH = flags.DEFINE_integer("batch", 32, "Rows of a step.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a row at most.", lower_bound=4)
_STEPS = flags.DEFINE_integer("steps", 4, "Steps of a round.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds.", lower_bound=1)
# Of the processes that this one starts. Under the name of another module --help leaves it out.
_ROLE: flags.FlagHolder = flags.DEFINE_flag(
    flags.Flag(flags.ArgumentParser(), None, "role", None, "albert or transformers"),
    module_name="benchmarks.finetuning",
)
_PADDINGS = ("padded", "longest")
_PEER = ("torch", "transformers")


# What runs in a process of its own. Each returns a function that takes the steps of some batches
# and waits for them, and what to tell of the framework.


def ours(config, folder: Path | None):
    """The project's own step; writes its first weights to `folder` for the other process."""
    import flax.linen as nn
    import jax
    import numpy as np
    from flax.traverse_util import flatten_dict

    from albert.interop import formats
    from albert.interop.weights import Weights, unstacked
    from albert.tasks.glue import Glue
    from albert.tasks.texts import HEAD
    from albert.train.config import parts_of
    from albert.train.optimizers import make_optimizer
    from albert.train.sharding import batch_sharding, make_mesh, put_batch
    from albert.train.step import shard_training

    task = Glue(config)
    optimizer, schedule = make_optimizer(
        config.optimizer, config.train.num_steps, task.unused(config)
    )
    mesh = make_mesh(config.sharding)
    _, create, train_step = shard_training(
        task,
        optimizer,
        schedule,
        parts_of(config, mesh.size),
        config.seed,
        mesh,
        config.sharding,
        config.train.spike_factor,
    )
    state = create()
    params = {n: np.asarray(v) for n, v in flatten_dict(state.params, sep="/").items()}
    if folder:
        weights = Weights(
            config.model,
            unstacked(config.model, params),
            heads={HEAD: dict(task.model.head_fields[HEAD])},
            labels=task.labels,
        )
        formats.write(weights, folder, "huggingface")
    rows_sharding = batch_sharding(mesh, config.sharding)

    def run(batches):
        nonlocal state
        with jax.set_mesh(mesh), nn.logical_axis_rules(config.sharding.rules):
            for batch in batches:
                state, metrics = train_step(state, put_batch(batch, rows_sharding))
        jax.block_until_ready((state, metrics))

    facts = {"versions": f"jax {jax.__version__}", "devices": jax.device_count()}
    return run, facts | {"parameters": sum(value.size for value in params.values())}


def theirs(folder: Path, learning_rate: float, clip_norm: float):
    """Their model with the weights in `folder`; a step is what their Trainer makes of one."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # by itself it may take fewer
    model = transformers.AlbertForSequenceClassification.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)

    def run(batches):
        for batch in batches:
            model(
                **{name: torch.from_numpy(value) for name, value in batch.items()}
            ).loss.backward()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            optimizer.zero_grad()

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    facts = {"versions": versions, "attention": model.config._attn_implementation}
    return run, facts | {"parameters": sum(value.numel() for value in model.parameters())}


def serve(make) -> None:
    """Times a round for every line of standard input that names a padding; answers in JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this one ends it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    arguments, batches = pickle.load(sys.stdin.buffer)
    run, facts = make(*arguments)
    start = time.perf_counter()
    for of_padding in batches.values():
        run({batch["input_ids"].shape: batch for batch in of_padding}.values())
    facts["warm_up_seconds"] = time.perf_counter() - start
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(batches[line.strip()])
        print(json.dumps(time.perf_counter() - start), file=answers, flush=True)


# What starts these processes, and asks them in turn.


class Timed:
    """A framework in a process of its own, which ends with the context."""

    def __init__(self, role: str):
        self._role = role
        self.process = subprocess.Popen(
            [sys.executable, __file__, f"--role={role}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    def start(self, arguments: tuple, batches: dict[str, list]) -> None:
        """Compiles every length."""
        self.facts = self._ask(pickle.dumps((arguments, batches)))

    def seconds(self, padding: str) -> float:
        """Of one step, in a round."""
        return self._ask(f"{padding}\n".encode()) / _STEPS.value

    def _ask(self, question: bytes):
        from albert.runtime import RunError

        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # a process that is gone gives no answer
            self.process.stdin.write(question)
            self.process.stdin.flush()
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        code = self.process.wait()
        raise RunError(f"The process of {self._role} left with {code}; what it said is above.")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()


def checked_config(folder: Path):
    """The config with what the flags say, its rows kept in `folder`; raises ConfigError."""
    from albert.runtime.fields import ConfigError

    taken = {
        "data.path": (_DATA.value, "set --data"),
        "data.tokenizer": (_TOKENIZER.value, "set --tokenizer"),
        "data.seq_length": (_LENGTH.value, "set --length"),
        "data.folder": (str(folder), "rows are not kept here"),
        "train.batch_size": (_BATCH.value, "set --batch"),
        "model.dtype": ("float32", "everything is float32 here"),
        "init_from": ("", "weights are random here"),
        "init_model": (False, "weights are random here"),
    }
    task, overridden = cli.checked(_CONFIG, needs_text=False).task, cli.overrides(_CONFIG)
    problems = [f"--config.{n}: {why}" for n, (_, why) in taken.items() if n in overridden]
    if task != "glue":
        problems.append(f"task is {task!r}; only those of GLUE are timed here")
    if problems:
        raise ConfigError(problems)
    _CONFIG.value.update_from_flattened_dict({name: value for name, (value, _) in taken.items()})
    return cli.checked(_CONFIG)


def batches_of(config, folder: Path) -> dict[str, dict[str, list]]:
    """Framework -> padding -> the batches of a round, from the real rows of the task."""
    from albert.data.labelled.rows import LabelledRows
    from albert.data.loader import BatchSource
    from albert.tasks.glue import Glue

    rows = Glue.prepare(config, folder, None, None).rows
    length = config.data.seq_length
    fixed = LabelledRows(rows.sequences, rows.fields, length, config.seed, is_fixed=True)
    size, steps = config.train.batch_size, _STEPS.value

    def made(of):
        source = BatchSource(of, size, tuple(range(size)), steps)
        return [source[step] for step in range(steps)]

    def for_peer(batch, longest):
        arrays = {n: v[:, :longest] if v.ndim > 1 else v for n, v in batch.items()}
        wide = {n: v.astype("int64") if v.dtype.kind == "i" else v for n, v in arrays.items()}
        return {name: value for name, value in wide.items() if name != "weights"}  # all are 1

    padded = made(fixed)
    return {
        "albert": {"padded": padded, "longest": made(rows)},
        "transformers": {
            "padded": [for_peer(batch, length) for batch in padded],
            "longest": [for_peer(b, b["attention_mask"].sum(1).max()) for b in padded],
        },
    }


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).split(": ", 1)[1]
    return platform.processor() or platform.machine()


def table(times: dict, batches: dict) -> str:
    """Markdown, a row for each of `times`: (framework, padding) -> seconds per step of rounds."""
    medians = {variant: statistics.median(seconds) for variant, seconds in times.items()}
    peers = [variant for variant in times if variant[0] == "transformers"]
    heads = ["variant", "mean length", "seconds/step", "steps/s", "real tokens/s"]
    heads += [f"ratio to transformers {padding}" for _, padding in peers]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for variant, median in medians.items():
        name, padding = variant
        masks = [batch["attention_mask"] for batch in batches[name][padding]]
        real = sum(int(mask.sum()) for mask in masks) / len(masks)
        cells = [
            f"{name} {padding}",
            f"{statistics.mean(mask.shape[1] for mask in masks):.1f}",
            f"{median:.4g} ({min(times[variant]):.4g} to {max(times[variant]):.4g})",
            f"{1 / median:.4g}",
            f"{real / median:,.0f}",
            *(f"{medians[peer] / median:.2f}" for peer in peers),
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    if _ROLE.value:
        serve({"albert": ours, "transformers": theirs}[_ROLE.value])
        return
    from albert.runtime.console import tell

    with tempfile.TemporaryDirectory(prefix="finetuning-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        config = checked_config(folder / "rows")
        batches = batches_of(config, folder)
        lacking = [module for module in _PEER if importlib.util.find_spec(module) is None]
        if lacking:
            tell(
                f"Not installed: {' and '.join(lacking)}. Ours is timed alone; what theirs needs "
                "is installed with pip install -r requirements-peers.txt."
            )
        model = None if lacking else folder / "model"
        arguments: dict[str, tuple] = {"albert": (config, model)}
        if model:  # in this order: ours writes the weights
            optimizer = config.optimizer
            arguments["transformers"] = (model, optimizer.learning_rate, optimizer.clip_norm)
        timed = {}
        for role, given in arguments.items():
            timed[role] = stack.enter_context(Timed(role))
            timed[role].start(given, batches[role])
            facts = timed[role].facts
            tell(
                f"{role}: {facts['parameters']:,} parameters, {facts['versions']}; compiling and "
                f"first steps took {facts['warm_up_seconds']:.1f} s"
            )
        times: dict = {(role, padding): [] for padding in _PADDINGS for role in timed}
        for number in range(_ROUNDS.value):
            for (role, padding), seconds in times.items():
                seconds.append(timed[role].seconds(padding))
            told = ", ".join(f"{' '.join(v)} {seconds[-1]:.4g}" for v, seconds in times.items())
            tell(f"round {number + 1} of {_ROUNDS.value}, seconds/step: {told}")
    facts = {
        "task": config.data.name,
        "batch": config.train.batch_size,
        "length": config.data.seq_length,
        "steps": _STEPS.value,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{role: of.facts for role, of in timed.items()},
        "seconds_per_step": {" ".join(variant): seconds for variant, seconds in times.items()},
    }
    versions = ", ".join(of.facts["versions"] for of in timed.values())
    print(
        f"\n{table(times, batches)}\n\n{config.data.name}, batch {config.train.batch_size}, "
        f"rounds: {_ROUNDS.value}, steps in each: {_STEPS.value}, float32, {facts['cores']} cores "
        f"of {facts['processor']}; Python {facts['python']}, {versions}"
    )
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main)
