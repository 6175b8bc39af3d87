"""Times a model's forms beside each other: in JAX, exported, and Hugging Face's.

  python benchmarks/inference.py                              ALBERT base of random weights
  python benchmarks/inference.py --model=runs/base --contenders=jax,onnx,onnx-int8
  python benchmarks/inference.py --threads=1 --shapes=1x128 --repeats=15

Every contender runs in a process of its own, which stays: one call of each in turn, after a rest
and a call that is not timed, --repeats times; the table has medians with the quartiles. Rows are
full. What is computed is the encoder's states. Memory is what the process holds more, when the
model is loaded and has run, than when its library was imported. The peers need:
pip install -r requirements-peers.txt -r requirements-export.txt -r requirements-litert.txt

A contender is one of

  jax                 albert.load, jitted
  stablehlo           the exported program, by jax
  onnx, onnx-fused    float32 with standard operators, with ONNX Runtime's own
  onnx-int8           int8, activations with a scale for each tensor
  onnx-int8-token     a scale for each token
  onnx-int4           layers in 4 bits, activations rounded to int8 as it runs
  litert, litert-int8 LiteRT, a signature for each length of --shapes, its rows one by one
  bert-onnx           BERT of the same shape, float32: nothing shared, E = H
  bert-onnx-int8      the same in int8
  hf                  Hugging Face's AlbertModel in PyTorch, SDPA
  hf-compiled         the same by torch.compile, for each shape
  hf-onnx             the same exported by torch.onnx, in ONNX Runtime
  hf-onnx-int8        that by ONNX Runtime's quantize_dynamic

Prints a table, and one JSON line.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli
from albert.runtime.console import tell
from benchmarks.processes import Process, answer, started

_MODEL = flags.DEFINE_string("model", "", "What albert.load takes. Default: base, random weights.")
_OURS = (
    "jax",
    "stablehlo",
    "onnx",
    "onnx-fused",
    "onnx-int8",
    "onnx-int8-token",
    "onnx-int4",
    "litert",
    "litert-int8",
)
_BERT = ("bert-onnx", "bert-onnx-int8")
_PEERS = ("hf", "hf-compiled", "hf-onnx", "hf-onnx-int8")
_CONTENDERS = flags.DEFINE_list("contenders", [*_OURS, *_BERT, *_PEERS], "Which, in this order.")
_SHAPES = flags.DEFINE_list(
    "shapes", ["1x16", "1x128", "1x512", "8x128", "32x128"], "Rows x tokens."
)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of each.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 7, "How often each is timed.", lower_bound=3)
_REST = flags.DEFINE_float("rest", 0.25, "Seconds of rest in front of each call.")
_FOLDER = flags.DEFINE_string("folder", "", "Where the forms are written. Default: removed again.")
_FIRST = 1, 128  # the rows of the first call, behind which memory is looked at
_ROLE: flags.FlagHolder = flags.DEFINE_flag(
    flags.Flag(flags.ArgumentParser(), None, "role", None, "a contender"),
    module_name="benchmarks.inference",
)


# The forms of a model, each in a folder of its own.


def write_forms(folder: Path, names: list[str], lengths: list[int]) -> None:
    """Writes what the contenders need below `folder`; `lengths`: of rows, for fixed shapes."""
    from albert.export import export
    from albert.interop import formats

    weights = formats.read(Path(_MODEL.value)) if _MODEL.value else _random("all", 128)
    folder.mkdir(parents=True, exist_ok=True)
    forms = {
        "stablehlo": ("stablehlo", "float32", {}),
        "onnx": ("onnx", "float32", {}),
        "onnx-fused": ("onnx", "float32", {"fused": True}),
        "onnx-int8": ("onnx", "int8", {}),
        "onnx-int8-token": ("onnx", "int8", {"per_token": True}),
        "onnx-int4": ("onnx", "int4", {}),
        "litert": ("litert", "float32", {"lengths": lengths}),
        "litert-int8": ("litert", "int8", {"lengths": lengths}),
    }
    bert = None
    for name in names:
        of, form = weights, name.removeprefix("bert-")
        if form in forms and not (folder / name).is_dir():
            tell(f"{name}: writing")
            if form != name:
                bert = of = bert or _random("none", weights.config.hidden_size, weights.config)
            kind, precision, options = forms[form]
            export(of, folder / name, kind, ("hidden",), (precision,), **options)
    for format, users in {"albert": ("jax",), "huggingface": _PEERS}.items():
        if not (folder / format).is_dir() and set(users) & set(names):
            formats.write(weights, folder / format, format)


def _random(sharing: str, embedding: int, like=None):
    """Random weights of ALBERT base, or of a model like another."""
    import flax.linen as nn
    import jax
    import numpy as np
    from flax.traverse_util import flatten_dict

    from albert.interop.weights import Weights, unstacked
    from albert.models.config import AlbertConfig
    from albert.models.encoder import Albert, init_params
    from configs import base

    like = like or AlbertConfig(**base.get_config().model)
    config = dataclasses.replace(
        like, sharing=sharing, embedding_size=embedding, dtype="float32", remat="none"
    )
    params = nn.meta.unbox(init_params(Albert(config, ()), jax.random.key(0)))
    flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    return Weights(config, unstacked(config, flat))


# What runs in a process of its own: functions that make a function of the inputs.


def rows(count: int, length: int):
    """int64 [B, L] three times: tokens without padding, in two segments."""
    import numpy as np

    ids = np.random.default_rng(0).integers(5, 1000, (count, length))
    types = np.zeros_like(ids)
    types[:, length // 2 :] = 1
    return ids, np.ones_like(ids), types


def of_jax(folder: Path, name: str, threads: int):
    import albert

    model = albert.load(folder / "albert")
    return lambda inputs: model(*inputs).last_hidden_state


def of_stablehlo(folder: Path, name: str, threads: int):
    from albert.export import stablehlo

    run = stablehlo.runner(folder / name / stablehlo.PROGRAM)
    return lambda inputs: run(*inputs)["last_hidden_state"]


def of_litert(folder: Path, name: str, threads: int):
    from albert.export import litert

    (file,) = (folder / name).glob("*.tflite")
    run = litert.runner(file, threads)
    return lambda inputs: run(*inputs)["last_hidden_state"]


def of_onnx(folder: Path, name: str, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    (file,) = (folder / name).glob("**/*.onnx")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    given = dict(zip(("input_ids", "attention_mask", "token_type_ids"), range(3), strict=True))

    def run(inputs):
        return session.run(None, {name: inputs[given[name]] for name in names})[0]

    return run


def of_torch(folder: Path, name: str, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AlbertModel.from_pretrained(folder / "huggingface").eval()
    call = torch.compile(model) if name == "hf-compiled" else model

    def run(inputs):
        ids, mask, types = map(torch.from_numpy, inputs)
        with torch.inference_mode():
            return call(ids, mask, types).last_hidden_state.numpy()

    return run


def export_by_torch(folder: Path, name: str) -> None:
    """Hugging Face's model as ONNX by torch.onnx, in the folder `name`."""
    import torch
    import transformers

    (folder / name).mkdir()
    model = transformers.AlbertModel.from_pretrained(folder / "huggingface").eval()
    ids = torch.ones(2, 16, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    model.config.return_dict = False
    torch.onnx.export(
        model,
        (ids, ids, ids),
        str(folder / name / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state", "pooler_output"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]},
        opset_version=17,
        dynamo=False,
    )


def of_exported(folder: Path, name: str, threads: int):
    import subprocess

    if not (folder / "hf-onnx").is_dir():  # by another process: PyTorch is not to count as memory
        subprocess.run(
            [sys.executable, __file__, "--role=export", f"--folder={folder}"],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
    if name == "hf-onnx-int8" and not (folder / name).is_dir():
        subprocess.run(
            [sys.executable, __file__, "--role=quantise", f"--folder={folder}"],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
    return of_onnx(folder, name, threads)


def quantise(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    (folder / "hf-onnx-int8").mkdir()
    source, target = (folder / name / "model.onnx" for name in ("hf-onnx", "hf-onnx-int8"))
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)


def maker(name: str):
    """How a contender is made, and the modules that are imported before memory is looked at."""
    if name.startswith("hf-onnx"):
        return of_exported, ["onnxruntime"]
    if name.startswith("hf"):
        return of_torch, ["torch", "transformers.models.albert.modeling_albert"]
    if "onnx" in name:
        return of_onnx, ["onnxruntime"]
    if "litert" in name:
        return of_litert, ["ai_edge_litert.interpreter", "albert.export.litert"]
    return {"jax": of_jax, "stablehlo": of_stablehlo}[name], ["albert.inference", "jax.export"]


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def contender(name: str, folder: Path, threads: int) -> None:
    """Answers {"begin"} with what it holds, {"shape"} with the seconds of a call."""
    import importlib

    make, modules = maker(name)
    for module in modules:
        importlib.import_module(module)
    if "jax" in sys.modules:
        import jax

        jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    bare, run = resident(), None

    def handle(request: dict) -> dict:
        nonlocal run
        if run is None:
            run = make(folder, name, threads)
        if "shape" not in request:
            run(rows(*_FIRST))
            return {"memory_bytes": resident() - bare}
        inputs = rows(*request["shape"])
        run(inputs)
        begin = time.perf_counter()
        states = run(inputs)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "states": [float(x) for x in states[0, 0, :4]]}

    answer(handle)


# What asks them in turn.


def file_bytes(folder: Path, name: str) -> int:
    """Weights and graph of a contender."""
    place = {"jax": "albert", "hf": "huggingface", "hf-compiled": "huggingface"}.get(name, name)
    kinds = ("*.onnx", "*.stablehlo", "*.safetensors", "*.tflite")
    files = [f for kind in kinds for f in (folder / place).rglob(kind)]
    if place == "albert":
        files = [f for f in (folder / place / "checkpoints").rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)


def measure(processes: dict[str, Process], shapes: list[tuple[int, int]]) -> dict[str, dict]:
    """What there is to tell of every contender."""
    found: dict[str, dict] = {}
    for name, process in processes.items():
        found[name] = process.ask(begin=True)
        tell(f"{name}: {found[name].get('failed') or 'ready'}")
    running = [name for name in processes if "failed" not in found[name]]
    for shape in shapes:
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for turn in range(_REPEATS.value):
            for name in running:
                time.sleep(_REST.value)
                told = processes[name].ask(shape=shape)
                if "failed" in told:
                    found[name].setdefault("failed_at", {})[f"{shape[0]}x{shape[1]}"] = told[
                        "failed"
                    ]
                    continue
                seconds[name].append(told["seconds"])
                if not turn:
                    found[name].setdefault("states", told["states"])
        for name in running:
            if seconds[name]:
                low, middle, high = statistics.quantiles(seconds[name], n=4)
                found[name][f"{shape[0]}x{shape[1]}"] = [low, middle, high]
        tell(f"{shape[0]} x {shape[1]}: measured")
    return found


def check_states(found: dict[str, dict]) -> None:
    """Raises RunError where contenders of the same weights give other states: float32 by more than
    a trifle, int8 and int4 by more than they may."""
    from albert.runtime import RunError

    given = {name: facts["states"] for name, facts in found.items() if "states" in facts}
    given = {name: states for name, states in given.items() if name not in _BERT}
    first = next((name for name in given if "int" not in name), None)
    for name, states in given.items():
        most = 0.2 if "int8" in name else 0.8 if "int4" in name else 1e-3
        off = max(abs(a - b) for a, b in zip(states, given.get(first, states), strict=True))
        if off > most:
            raise RunError(
                f"{name} gives other states than {first}, by {off:.2g}: it is another model."
            )


def lines(found: dict[str, dict], shapes: list[str]) -> list[str]:
    from tools.claims.page import table

    body = []
    for name, facts in found.items():
        if "failed" in facts:
            body.append([name, facts["failed"], *[""] * (len(shapes) + 1)])
            continue
        cells = []
        for shape in shapes:
            if shape in facts:
                low, middle, high = (1e3 * value for value in facts[shape])
                cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f})")
            else:
                cells.append("failed")
        body.append(
            [
                name,
                f"{facts['file_bytes'] / 1e6:.1f}",
                f"{facts['memory_bytes'] / 2**20:.0f}",
                *cells,
            ]
        )
    heads = ["what", "file MB", "memory MiB", *[f"ms at {shape}" for shape in shapes]]
    return table(heads, body)


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    if _ROLE.value == "export":
        export_by_torch(Path(_FOLDER.value), "hf-onnx")
        return
    if _ROLE.value == "quantise":
        quantise(Path(_FOLDER.value))
        return
    if _ROLE.value:
        contender(_ROLE.value, Path(_FOLDER.value), _THREADS.value)
        return
    from albert.runtime.fields import ConfigError
    from tools.claims.where import here

    problems = [
        f"--contenders: there is no {name!r}; there is {', '.join((*_OURS, *_BERT, *_PEERS))}"
        for name in _CONTENDERS.value
        if name not in (*_OURS, *_BERT, *_PEERS)
    ]
    shapes = []
    for text in _SHAPES.value:
        count, _, length = text.partition("x")
        if not (count.isdecimal() and length.isdecimal() and int(count) and int(length)):
            problems.append(f"--shapes: {text!r} is not rows x tokens, such as 8x128")
        else:
            shapes.append((int(count), int(length)))
    if problems:
        raise ConfigError(problems)
    with contextlib.ExitStack() as stack:
        folder = Path(_FOLDER.value or stack.enter_context(tempfile.TemporaryDirectory()))
        folder = folder.absolute()
        write_forms(
            folder, _CONTENDERS.value, sorted({_FIRST[1], *(length for _, length in shapes)})
        )
        # Each gets as many cores as threads, so that what sizes its pools by cores has them too.
        cores = sorted(os.sched_getaffinity(0))[: _THREADS.value]
        os.sched_setaffinity(0, cores)
        environment = {"OMP_NUM_THREADS": str(_THREADS.value), "HF_HUB_OFFLINE": "1"}
        processes = {
            name: stack.enter_context(
                started(
                    __file__,
                    [f"--role={name}", f"--folder={folder}", f"--threads={_THREADS.value}"],
                    environment,
                )
            )
            for name in _CONTENDERS.value
        }
        found = measure(processes, shapes)
        check_states(found)
        for name, facts in found.items():
            facts["file_bytes"] = file_bytes(folder, name)
    print("\n".join(lines(found, _SHAPES.value)))
    measured = {"where": here(), "threads": _THREADS.value, "cores": len(cores)}
    print(json.dumps(measured | {"contenders": found}))


if __name__ == "__main__":
    cli.run(main)
