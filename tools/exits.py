"""What leaving early costs and saves: quality over depth, and over time in ONNX Runtime.

  python tools/exits.py --workdir=runs/sst2
  python tools/exits.py --workdir=runs/sst2 --latency --texts=300 --threads=1

The run was fine-tuned with data.exits. From one pass of its dev set over all depths come a table of
every fixed depth, every patience and several confidences, exits_STEP.json and exits_STEP.png in the
workdir. --latency also times each of them in ONNX Runtime, text by text, each of its own length, in
turn with the graph that has no exits: columns are means over texts of each one's median. That needs
pip install -r requirements-export.txt. What is said of energy is an estimate, the time multiplied
by an assumed power (--watts).
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

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_string("step", None, "Step: a number, latest or best. Default: the best.")
_LATENCY = flags.DEFINE_bool("latency", False, "Time every way to leave in ONNX Runtime.")
_TEXTS = flags.DEFINE_integer("texts", 200, "Texts that are timed.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "How often each is timed.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of ONNX Runtime.", lower_bound=1)
_FUSED = flags.DEFINE_bool("fused", False, "Use operators that ONNX Runtime alone has.")
_WATTS = flags.DEFINE_float("watts", 10.0, "Power of a busy core, assumed, for the estimate.")


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from albert.runtime.fields import ConfigError
    from albert.runtime.paths import place, replace_text
    from albert.tasks import exits
    from albert.tasks.texts import EXITS
    from albert.train.pictures import png_of
    from tools.claims.where import here

    if _STEP.value == "all":
        raise ConfigError(["--step is all; the curve is of one checkpoint"])
    workdir = place(_WORKDIR.value)
    step, task, logits = every_depth(workdir)
    if logits is None:
        raise ConfigError(
            [
                f"{workdir} has no classifiers on the depths before the last: fine-tune on texts "
                f"with data.{EXITS}=together, or with frozen from a fine-tuned run"
            ]
        )
    evaluation = task.evaluations[0]
    points = task.exit_points(evaluation.name, logits)
    metric, more = next(iter(points[0].figures)), {}
    pictures = {f"exits_{step}": exits.draw(points, metric)}
    found = {
        "where": here(),
        "step": step,
        "examples": len(logits),
        "points": list(map(dataclasses.asdict, points)),
    }
    if _LATENCY.value:
        whole, seconds = latencies(workdir / "checkpoints" / str(step), points, evaluation)
        more = {
            "ms": [1000 * each for each in seconds],
            "times faster": [whole / each for each in seconds],
            "mJ, estimate": [1000 * _WATTS.value * _THREADS.value * each for each in seconds],
        }
        found |= {
            "texts_timed": min(_TEXTS.value, len(logits)),
            "threads": _THREADS.value,
            "fused": _FUSED.value,
            "ms_without_exits": 1000 * whole,
            "watts_assumed": _WATTS.value,
            "ms": more["ms"],
        }
        pictures[f"exits_{step}_ms"] = exits.draw(points, metric, more["ms"])
    print(f"{evaluation.name} at step {step}, {len(logits):,} examples")
    print("\n".join(exits.table(points, more)))
    if _LATENCY.value:
        print(f"Without exits {1000 * whole:.3g} ms a text, {_THREADS.value} threads.")
    replace_text(workdir / f"exits_{step}.json", json.dumps(found, indent=1) + "\n")
    for name, draw in pictures.items():
        (workdir / f"{name}.png").write_bytes(png_of(draw))
    print(f"Written to {workdir}: exits_{step}.json, {', '.join(f'{n}.png' for n in pictures)}")


def every_depth(workdir: Path):
    """(step, task, logits of all depths of its first evaluation or None where it has no exits)."""
    from albert.checkpoints.store import Checkpoints
    from albert.tasks.texts import EXITS
    from albert.train.evaluate import Options, chosen_steps, on_these_devices, open_run

    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        step = chosen_steps(checkpoints, _STEP.value)[-1]
        config, task = open_run(workdir, checkpoints.info(step), Options())
        if EXITS not in task.model.heads:
            return step, task, None
        with on_these_devices(config, task) as (evaluators, like, *_):
            params = checkpoints.restore_params(step, like)
            return step, task, evaluators[0].outcome(params)


def latencies(path: Path, points, evaluation) -> tuple[float, list[float]]:
    """Seconds a text of the graph without exits, and of one for each point."""
    from albert.export import onnx
    from albert.export.interface import INPUTS, Options, asked
    from albert.interop import formats

    weights = formats.read(path)
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            onnx.runner(
                onnx.write(
                    asked(weights, ("classifier",), exit),
                    Path(folder) / str(number),
                    "float32",
                    Options(fused=_FUSED.value),
                ),
                _THREADS.value,
            )
            for number, exit in enumerate([None, *(point.exit for point in points)])
        ]
    sequences, count = evaluation.rows.sequences, evaluation.num_rows
    timed = min(_TEXTS.value, count)
    chosen = [n * count // timed for n in range(timed)]  # from all over the set
    totals = [0.0] * len(runs)
    for text in chosen:
        row = sequences.padded([text], int(sequences.lengths[text]))
        inputs = [row[name] for name in INPUTS]
        taken: list[list[float]] = [[] for _ in runs]
        for repeat in range(_REPEATS.value + 1):
            for run, of in zip(runs, taken, strict=True):
                begin = time.perf_counter()
                run(*inputs)
                if repeat:  # the first is not counted
                    of.append(time.perf_counter() - begin)
        totals = [t + statistics.median(of) for t, of in zip(totals, taken, strict=True)]
    whole, *others = (total / len(chosen) for total in totals)
    return whole, others


if __name__ == "__main__":
    cli.run(main)
