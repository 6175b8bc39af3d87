"""Measures ALBERT against BERT of the same shape, and judges what is commonly said of it.

  python tools/report.py --output=docs                     everything that can be measured here
  python tools/report.py --output=docs --only=parameters,step      some sections
  python tools/report.py --output=docs --albert_runs='DIR/sharing=all,embedding_size=32,seed=*' \\
      --bert_runs='DIR/sharing=none,embedding_size=64,seed=*'      convergence of finished runs
  python tools/report.py --output=docs --only=parameters --inference=FILE --exits=RUN/exits_600.json
                                                  what benchmarks/inference.py and exits.py found

BERT is the same config with nothing shared and E = H. Writes claims.md, its pictures, and every
measurement as soon as it is made into claims/measured.json: a report that was stopped goes on, and
a measurement is made again when its entry there is removed; another config needs another --output.
Sections: parameters, memory, tpu,
step, latency, depths. The section tpu compiles for TPUs that are not there, a minute or two for
each of some thirty programs on two cores. It needs libtpu, and a power meter codecarbon:
requirements-report.txt. For a look at the page within minutes:

  python tools/report.py --config=configs/base.py:tiny --rows=2 --length=16 \\
      --only=parameters,memory,step,latency,depths
"""

import dataclasses
import functools
import glob
import importlib.util
import shlex
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

SECTIONS = ("parameters", "memory", "tpu", "step", "latency", "depths")
_CONFIG = cli.define_config("configs/base.py")
_OUTPUT = flags.DEFINE_string("output", "claims", "Folder of claims.md and claims/.")
_ONLY = flags.DEFINE_list("only", list(SECTIONS), "Sections to measure.")
_ROWS = flags.DEFINE_integer("rows", 8, "Rows of a step that is timed.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of such a row.", lower_bound=8)
_ALBERT = flags.DEFINE_string("albert_runs", None, "Pattern of ALBERT's finished runs.")
_BERT = flags.DEFINE_string("bert_runs", None, "Pattern of BERT's, of the same shape.")
_INFERENCE = flags.DEFINE_string("inference", None, "What benchmarks/inference.py printed, a file.")
_EXITS = flags.DEFINE_list("exits", [], "Files exits_STEP.json of tools/exits.py --latency.")
_WATTS = flags.DEFINE_float("watts", 100.0, "Power of this machine, assumed, for the estimate.")
_PUE = flags.DEFINE_float("pue", 1.2, "Power of the whole data centre over the machine's, assumed.")
_GRAMS = flags.DEFINE_float(
    "grams", 480.0, "Grams of CO2 per kWh, assumed: about the world's mean."
)
_TARGET_STEPS = flags.DEFINE_integer("steps", 125_000, "Steps that the estimate of energy is for.")


def main() -> None:
    config = cli.checked(_CONFIG, needs_text=False)
    import jax

    from albert.runtime.fields import ConfigError
    from tools.claims import energy, measure, page
    from tools.claims.where import here

    problems = [
        f"--only names {s!r}; there is {', '.join(SECTIONS)}"
        for s in _ONLY.value
        if s not in SECTIONS
    ]
    if (_ALBERT.value is None) != (_BERT.value is None):
        problems.append("--albert_runs and --bert_runs go together")
    folders = {}
    for name, pattern in (("ALBERT", _ALBERT.value), ("BERT", _BERT.value)):
        if pattern is not None:
            named = Path(pattern).expanduser()
            matching = [named] if named.is_dir() else map(Path, sorted(glob.glob(str(named))))
            folders[name] = list(matching)
            if not folders[name]:
                problems.append(f"there is no run {pattern}")
    problems += measure.run_problems(folders)
    if problems:
        raise ConfigError(problems)
    device = _INFERENCE.value and measure.inference(Path(_INFERENCE.value).expanduser())
    left = measure.exits([Path(name).expanduser() for name in _EXITS.value])
    output = Path(_OUTPUT.value).expanduser()
    of = {
        "model": dataclasses.asdict(config.model),
        "optimizer": dataclasses.asdict(config.optimizer),
        "data.seq_length": config.data.seq_length,
        "data.max_predictions": config.data.max_predictions,
        "rows": _ROWS.value,
        "length": _LENGTH.value,
    }
    note = measure.Notebook(
        output / "claims" / "measured.json", of, here(), lambda t: print(t, flush=True)
    )
    note("parameters", lambda: measure.parameters(config))
    if folders:
        note.keep("runs", {n: measure.curves(of) for n, of in folders.items()})
    if device:
        note.keep("inference", device, device["where"])
    if left:
        note.keep("exits", left, "; ".join(sorted({of["where"] for of in left.values()})))
    if "tpu" in _ONLY.value:
        _tpu(measure, note, config)
    local = measure.resized(
        config, _ROWS.value, _LENGTH.value, max(1, _LENGTH.value * 15 // 100), dtype="float32"
    )
    predictions = local.data.max_predictions
    if "memory" in _ONLY.value:
        for rows in (_ROWS.value, 4 * _ROWS.value):
            for length in (_LENGTH.value, 4 * _LENGTH.value):
                made = functools.partial(
                    measure.local_memory, local, rows, length, max(1, length * 15 // 100)
                )
                note(f"memory {rows} x {length}", made)
        note(
            "largest here",
            lambda: measure.largest_here(
                local, 4 * _LENGTH.value, max(1, 4 * _LENGTH.value * 15 // 100), 4 * _ROWS.value
            ),
        )
    if "step" in _ONLY.value:
        note("step", lambda: measure.step_times(local, _ROWS.value, _LENGTH.value, predictions))
        if jax.device_count() > 1:
            note("all-reduce", lambda: measure.all_reduce(local) | {"devices": jax.device_count()})
        if energy.can_measure():
            note("kWh", lambda: measure.metered(local, _ROWS.value, _LENGTH.value, predictions))
    if "latency" in _ONLY.value:
        shapes = ((1, _LENGTH.value), (1, 4 * _LENGTH.value), (4 * _ROWS.value, _LENGTH.value))
        note("latency", lambda: measure.latencies(local, shapes))
    if "depths" in _ONLY.value:
        note("depths", lambda: measure.depths(local, (2, 12, 24)))
    size = measure.size_of(config)
    written = page.write(
        note.values, size, f"python {shlex.join(sys.argv)}", _energy(note.values), output
    )
    print(f"Written to {written}")


def _tpu(measure, note, config) -> None:
    if importlib.util.find_spec("libtpu") is None:
        from tools.compilers.targets import INSTALL

        print(f"No TPU compiler here: {INSTALL['tpu']}.", flush=True)
        return
    for kind, remat in (("v5e", "none"), ("v5e", "full"), ("v6e", "none"), ("v6e", "full")):
        for name, of in measure.pair(config).items():
            try:
                note(
                    f"chip {kind} {remat} {name}",
                    lambda of=of, kind=kind, remat=remat: measure.chip(
                        of, kind, remat, lambda t: print(t, flush=True)
                    ),
                )
            except measure.NoCompiler as error:
                print(f"The TPU compiler does not answer: {error}", flush=True)
                return


def _energy(found: dict) -> list[str]:
    from tools.claims import energy
    from tools.claims.page import table

    if "step" not in found:
        return ["Not measured: no step was timed."]
    steps = _TARGET_STEPS.value
    if "kWh" in found:
        lines = [
            f"Measured by codecarbon over half a minute of steps, from what it reads of "
            f"{', '.join(energy.meters())}; the machine alone, no PUE."
        ]
        kwh_per_step = found["kWh"]
    else:
        lines = [
            "**An estimate, not a measurement**: "
            + (
                "codecarbon is missing; " + energy.INSTALL
                if energy.meters()
                else "this machine has no power meter that can be read (RAPL, NVIDIA)"
            )
            + f". kWh = seconds x watts x PUE / 3,600,000, with {_WATTS.value:g} W for this "
            f"machine (--watts) and PUE {_PUE.value:g} (--pue), both assumed. With equal power "
            "and equal steps the ratio of the models is that of their step times."
        ]
        kwh_per_step = {
            name: parts["step"] * _WATTS.value * _PUE.value / 3.6e6
            for name, parts in found["step"].items()
        }
    lines += [
        "",
        f"CO2 = kWh x {_GRAMS.value:g} g, about the world's mean (--grams); {steps:,} steps "
        "(--steps) of the shape timed above:",
        "",
    ]
    rows = [
        [name, f"{steps * kwh:,.1f}", f"{steps * kwh * _GRAMS.value / 1000:,.1f}"]
        for name, kwh in kwh_per_step.items()
    ]
    return lines + table(["model", "kWh", "kg CO2"], rows)


if __name__ == "__main__":
    cli.run(main)
