"""Every measurement of the claims report, each kept as soon as it is made."""

import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from albert.models.encoder import Albert, init_params
from albert.runtime.fields import ConfigError
from albert.runtime.paths import replace_text
from albert.tasks.pretraining import Pretraining, apply_model, flops_per_token
from albert.train.config import Config
from albert.train.cost import parameters_of, state_bytes
from albert.train.optimizers import make_optimizer
from albert.train.program import data_mesh, lower_step, memory
from albert.train.step import make_train_step, new_state
from tools.claims import energy
from tools.claims.sizes import bert_of, largest_that_fits, resized
from tools.compilers.hlo import exchanged
from tools.compilers.targets import compile_for

REPEATS = 5
REMATS = ("none", "dots", "full")
# Layers, hidden size, heads, feed-forward width: section "Sizes" of the released program.
SIZES = {
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
    "xlarge": (24, 2048, 16, 8192),
    "xxlarge": (12, 4096, 64, 16384),
}


class Notebook:
    """Measurements by name, in a JSON file that is written after each.

    Args:
      path: the file.
      of: what is measured, as plain values; a file that holds measurements of anything else is
        refused with a ConfigError.
      where: on what and at which commit, for a reader; kept with each measurement.
      say: told of each measurement that is made.
    """

    def __init__(self, path: Path, of: dict, where: str, say: Callable[[str], None]):
        self._path = path
        self._where = where
        self._say = say
        of = json.loads(json.dumps(of))
        self.values: dict = json.loads(path.read_text()) if path.is_file() else {}
        there = self.values.setdefault("of", of)
        if changed := [name for name in of | there if of.get(name) != there.get(name)]:
            raise ConfigError(
                [
                    f"{path} holds measurements of another {', '.join(changed)}; choose another "
                    "--output, or remove it"
                ]
            )
        self.values.setdefault("where", {})

    def __call__(self, name: str, measure: Callable[[], object]):
        """What was measured under this name, measured now if it was not."""
        if name not in self.values:
            self._say(f"measuring {name}")
            self.keep(name, measure())
        return self.values[name]

    def keep(self, name: str, value: object, where: str | None = None) -> None:
        """Writes a value down, in place of one that was there; `where`: None for here."""
        # As it will be read again: keys are strings, tuples lists.
        self.values[name] = json.loads(json.dumps(value))
        self.values["where"][name] = where or self._where
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self._path, json.dumps(self.values, indent=1) + "\n")


def pair(config: Config) -> dict[str, Config]:
    return {"ALBERT": config, "BERT": bert_of(config)}


def sized(config: Config, size: str) -> Config:
    """The config at one of the released sizes."""
    layers, hidden, heads, width = SIZES[size]
    model = dataclasses.replace(
        config.model,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=width,
    )
    return dataclasses.replace(config, model=model)


def size_of(config: Config) -> str:
    """Which of SIZES the config has, or "this config"."""
    same = (size for size in SIZES if sized(config, size).model == config.model)
    return next(same, "this config")


def parameters(config: Config) -> dict:
    """By size and model: parameters by part, bytes of a checkpoint and of the optimizer, FLOPs."""
    found: dict = {}
    of_sizes = {size: sized(config, size) for size in SIZES}
    for size, one in ({size_of(config): config} | of_sizes).items():
        for name, of in pair(one).items():
            sizes = state_bytes(of)
            found.setdefault(size, {})[name] = {
                "parts": parameters_of(of),
                "checkpoint": sizes["parameters"] + sizes["optimizer"],
                "optimizer": sizes["optimizer"],
                "flops_per_token": flops_per_token(
                    of.model, of.data.seq_length, of.data.max_predictions
                ),
            }
    return found


def local_memory(config: Config, rows: int, length: int, predictions: int) -> dict:
    """By model and remat: bytes of the compiled step on one device here, for a batch."""
    found: dict = {}
    for name, of in pair(config).items():
        for remat in REMATS:
            changed = resized(of, rows, length, predictions, remat=remat)
            compiled = lower_step(changed, data_mesh(jax.devices()[:1])).compile()
            found.setdefault(name, {})[remat] = memory(compiled) | {
                "state": {k: v for k, v in state_bytes(changed).items() if k != "gradients"},
                "gradients": state_bytes(changed)["gradients"],
            }
    return found


def chip(config: Config, kind: str, remat: str, say: Callable[[str], None]) -> dict:
    """The most rows that fit a chip of `TARGETS`, as `largest_that_fits` finds them, and the
    compiler's answers."""
    answers: dict[int, dict] = {}
    topology_devices = 16

    def fits(rows: int) -> bool:
        of = resized(
            config,
            rows * topology_devices,
            config.data.seq_length,
            config.data.max_predictions,
            remat=remat,
        )
        answers[rows] = compile_for(kind, dataclasses.asdict(of))
        say(f"  {rows} rows on a {kind}: {answers[rows]}"[:150])
        if "missing" in answers[rows]:
            raise NoCompiler(answers[rows]["missing"])
        return answers[rows]["fits"]

    guess = {"none": 16, "full": 128}[remat] * (2 if kind == "v6e" else 1)
    return {"largest": largest_that_fits(fits, guess), "answers": answers}


class NoCompiler(RuntimeError):
    """The TPU compiler could not be asked."""


def depths(config: Config, steps: tuple[int, ...]) -> dict:
    """By model: seconds to lower and to compile the step at each depth, on one device here."""
    found: dict = {}
    for name, of in pair(resized(config, 8, 128, 20)).items():
        for layers in steps:
            deep = dataclasses.replace(
                of, model=dataclasses.replace(of.model, num_hidden_layers=layers)
            )
            begin = time.perf_counter()
            lowered = lower_step(deep, data_mesh(jax.devices()[:1]))
            middle = time.perf_counter()
            lowered.compile()
            times = {"lower": middle - begin, "compile": time.perf_counter() - middle}
            found.setdefault(name, {})[layers] = times
    return found


def largest_here(config: Config, length: int, predictions: int, guess: int) -> dict:
    """By model: the most rows whose step, as compiled for one device here, fits the memory of
    this machine; no remat. Nothing is run."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def fits(of: Config, rows: int) -> bool:
        changed = resized(of, rows, length, predictions, remat="none")
        lowered = lower_step(changed, data_mesh(jax.devices()[:1]))
        return memory(lowered.compile())["peak"] <= total

    return {
        name: {
            "rows": largest_that_fits(functools.partial(fits, of), guess),
            "length": length,
            "bytes": total,
        }
        for name, of in pair(config).items()
    }


def all_reduce(config: Config) -> dict:
    """By model: what a step exchanges between the devices that are here, rows cut along them, as
    compiled; and median seconds of summing an array of the gradients' size over them."""
    mesh = data_mesh(jax.devices())
    runs, found = {}, {}
    for name, of in pair(config).items():
        rows = of.train.batch_size * jax.device_count()
        wide = dataclasses.replace(of, train=dataclasses.replace(of.train, batch_size=rows))
        found[name] = {"exchanged": exchanged(lower_step(wide, mesh).compile().as_text())}
        number = state_bytes(of)["gradients"] // 4

        @jax.jit
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P())
        def summed(parts):
            return jax.lax.psum(parts, "data")

        parts = jax.jit(
            functools.partial(jnp.ones, (jax.device_count(), number), jnp.float32),
            out_shardings=NamedSharding(mesh, P("data")),
        )()
        runs[name] = functools.partial(summed, parts)
    for name, seconds in _medians(runs).items():
        found[name]["seconds"] = seconds
    return found


def random_rows(config: Config, packing: int = 0) -> dict[str, np.ndarray]:
    """A batch of random tokens without padding, each row cut into `packing` examples if not 0."""
    rng = np.random.default_rng(0)
    rows, length = config.train.batch_size, config.data.seq_length
    ids = rng.integers(5, config.model.vocab_size, (rows, length)).astype(np.int32)
    chosen = np.argsort(rng.random((rows, length - 2)), axis=1)[:, : config.data.max_predictions]
    positions = np.sort(chosen + 1, axis=1).astype(np.int32)
    batch = {
        "input_ids": ids,
        "token_type_ids": np.tile(np.arange(length) >= length // 2, (rows, 1)).astype(np.int32),
        "attention_mask": np.ones_like(ids),
        "mlm_positions": positions,
        "mlm_labels": np.take_along_axis(ids, positions, axis=1),
        "mlm_weights": np.ones(positions.shape, np.float32),
        "sop_labels": rng.integers(0, 2, rows).astype(np.int32),
    }
    if packing:
        number = np.arange(length) * packing // length
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        batch |= {
            "segment_ids": np.tile(number + 1, (rows, 1)).astype(np.int32),
            "position_ids": np.tile(np.arange(length) - starts[number], (rows, 1)).astype(np.int32),
            "cls_positions": np.tile(starts, (rows, 1)).astype(np.int32),
            "sop_labels": rng.integers(0, 2, (rows, packing)).astype(np.int32),
        }
    return batch


def step_times(config: Config, rows: int, length: int, predictions: int) -> dict:
    """By model: median seconds of the forward pass with its loss, of the gradient, of the whole
    step, in turn; and of what lies between them."""
    runs = {
        (name, part): run
        for name, of in pair(resized(config, rows, length, predictions)).items()
        for part, run in _programs(of).items()
    }
    found: dict = {}
    for (name, part), seconds in _medians(runs).items():
        found.setdefault(name, {})[part] = seconds
    for parts in found.values():
        parts["backward"] = parts["gradient"] - parts["forward"]
        parts["optimizer"] = parts["step"] - parts["gradient"]
    return found


def metered(config: Config, rows: int, length: int, predictions: int) -> dict:
    """By model: kWh of one step by the meters of this machine, over half a minute of steps."""
    return {
        name: energy.kwh_per_run(_programs(of)["step"])
        for name, of in pair(resized(config, rows, length, predictions)).items()
    }


def _programs(config: Config) -> dict[str, Callable[[], object]]:
    """The compiled forward pass with its loss, gradient, and step, on one device and a batch.

    The step goes on from its own outcome and takes its memory over, as that of the loop does.
    """
    task = Pretraining(config)
    optimizer, schedule = make_optimizer(config.optimizer, config.train.num_steps)
    init = functools.partial(task.init, task.model)
    state = jax.jit(lambda: _unboxed(new_state(init, optimizer, 0)))()
    batch = {k: jnp.asarray(v) for k, v in random_rows(config).items()}

    def loss(params, batch):
        return task.loss(task.sums(params, batch, None), task.denominators(batch))

    params = jax.tree.map(jnp.copy, state.params)  # those of the state are given away
    programs: dict[str, Callable[[], object]] = {
        part: functools.partial(jax.jit(function).lower(params, batch).compile(), params, batch)
        for part, function in (("forward", loss), ("gradient", jax.grad(loss)))
    }
    step = jax.jit(make_train_step(task, optimizer, schedule, 1, 0), donate_argnums=0)
    compiled = step.lower(state, batch).compile()

    def next_step():
        nonlocal state
        state, metrics = compiled(state, batch)
        return state, metrics

    return programs | {"step": next_step}


def latencies(config: Config, shapes: tuple[tuple[int, int], ...]) -> dict:
    """By "rows x length" and model: median seconds of the encoder with its pooler, dropout off."""
    found: dict = {}
    for rows, length in shapes:
        runs = {}
        for name, of in pair(resized(config, rows, length, 1)).items():
            model = Albert(of.model)
            create = functools.partial(init_params, model, jax.random.key(0))
            params = jax.jit(lambda create=create: _unboxed(create()))()
            batch = {k: jnp.asarray(v) for k, v in random_rows(of).items()}

            def pooled(params, batch, model=model):
                return apply_model(model, params, batch).pooled_output

            compiled = jax.jit(pooled).lower(params, batch).compile()
            runs[name] = functools.partial(compiled, params, batch)
        found[f"{rows} x {length}"] = _medians(runs)
    return found


def _unboxed(tree):
    from flax.core import meta

    return meta.unbox(tree)


def _medians(runs: dict) -> dict:
    """Median seconds of each, one after the other in turns, after one turn that is not counted."""
    times: dict = {key: [] for key in runs}
    for turn in range(REPEATS + 1):
        for key, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                times[key].append(time.perf_counter() - begin)
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def inference(path: Path) -> dict:
    """What benchmarks/inference.py printed, from the last line of its output.

    Raises ConfigError: it is not that.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8").strip().rpartition("\n")[2])
        if not {"where", "threads", "contenders"} <= found.keys():
            raise ValueError("its last line has no where, threads and contenders")
        return found
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError([f"--inference: {path} is no output of inference.py: {error}"]) from error


def exits(paths: Sequence[Path]) -> dict:
    """What `tools/exits.py --latency` wrote, by the name of the folder that it lies in.

    Raises ConfigError: a file is not that.
    """
    found = {}
    for path in paths:
        try:
            of = json.loads(path.read_text(encoding="utf-8"))
            if not {"where", "points", "ms", "ms_without_exits"} <= of.keys():
                raise ValueError("it lacks points, milliseconds or where")
        except (OSError, ValueError, AttributeError) as error:
            what = f"--exits: {path} was not written by tools/exits.py --latency: {error}"
            raise ConfigError([what]) from error
        found[path.absolute().parent.name] = of
    return found


def run_problems(folders: dict[str, list[Path]]) -> list[str]:
    """Why runs cannot be compared, one sentence each: not finished, or not of the same tokens."""
    found = []
    spent: dict[int, Path] = {}
    for folder in (folder for of in folders.values() for folder in of):
        if not (folder / "config.json").is_file():
            found.append(f"{folder} is not a run: it has no config.json")
            continue
        config = json.loads((folder / "config.json").read_text())["config"]
        steps = config["train"]["num_steps"]
        if not (folder / f"eval_{steps}.json").is_file():
            found.append(f"{folder} is not finished: it has no eval_{steps}.json")
        spent[steps * config["train"]["batch_size"] * config["data"]["seq_length"]] = folder
    if len(spent) > 1:
        told = ", ".join(f"{folder} of {tokens:,}" for tokens, folder in spent.items())
        found.append(f"the runs are not of the same number of tokens: {told}")
    return found


def curves(folders: list[Path]) -> dict:
    """Of finished runs that differ in their seed: losses over steps, tokens and seconds.

    Returns "shape", what the first run's model is in words, and lists with one entry for each run:
    "train" and "valid", lists of (step, MLM loss); "step_seconds", the median; "tokens" of a step,
    padding included; "epochs" at the end.
    """
    found: dict = {"train": [], "valid": [], "step_seconds": [], "tokens": [], "epochs": []}
    of = json.loads((folders[0] / "config.json").read_text())["config"]["model"]
    found["shape"] = (
        f"sharing {of['sharing']}, E {of['embedding_size']}, {of['num_hidden_layers']} layers of "
        f"H {of['hidden_size']}, V {of['vocab_size']:,}"
    )
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())["config"]
        records = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        for group in ("train", "valid"):
            found[group].append(
                [(r["step"], r["mlm_loss"]) for r in records if r["group"] == group]
            )
        train = [r for r in records if r["group"] == "train"]
        found["step_seconds"].append(
            statistics.median(r["step_seconds"] for r in train if "step_seconds" in r)
        )
        found["tokens"].append(config["train"]["batch_size"] * config["data"]["seq_length"])
        found["epochs"].append(train[-1]["epoch"])
    return found
