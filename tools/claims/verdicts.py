"""What is commonly said of ALBERT, judged by the numbers that were measured."""

import dataclasses
import re
import statistics
from collections.abc import Sequence
from typing import Any

BOTH = ("ALBERT", "BERT")

# A ratio ALBERT / BERT at or below the first is "true", at or below the second "partly".
CLEARLY, SLIGHTLY = 0.8, 0.97
# A difference between runs counts from so many standard deviations (of both models together) on.
DEVIATIONS = 2.0
NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Verdict:
    claim: str
    verdict: str  # true, partly, false or not measured
    number: str  # what it rests on


def by_ratio(claim: str, what: str, albert: float | None, bert: float | None) -> Verdict:
    """Judges that ALBERT needs less of something; None: it was not measured."""
    if albert is None or bert is None:
        return Verdict(claim, NOT_MEASURED, what)
    ratio = albert / bert
    verdict = "true" if ratio <= CLEARLY else "partly" if ratio <= SLIGHTLY else "false"
    return Verdict(claim, verdict, f"{what}: {ratio:.3f} of BERT's")


def by_runs(claim: str, what: str, albert: Sequence[float], bert: Sequence[float]) -> Verdict:
    """Judges that a figure is higher in ALBERT's runs than in BERT's; two runs each at least."""
    if len(albert) < 2 or len(bert) < 2:
        return Verdict(claim, NOT_MEASURED, f"{what}: needs two runs of each model")
    difference = statistics.fmean(albert) - statistics.fmean(bert)
    spread = (statistics.variance(albert) + statistics.variance(bert)) ** 0.5
    verdict = "false"
    if difference > 0:
        verdict = "true" if difference > DEVIATIONS * spread else "partly"
    return Verdict(
        claim,
        verdict,
        f"{what}: {statistics.fmean(albert):.3f} against {statistics.fmean(bert):.3f}, difference "
        f"{difference:+.3f}, both spreads together {spread:.3f}",
    )


def by_gaps(claim: str, albert: Sequence[float], bert: Sequence[float]) -> Verdict:
    """Judges that ALBERT's held-out loss is less above its training loss than BERT's.

    Where neither's is above it at all, nothing was learned by heart and nothing is to be judged.
    """
    if albert and bert and max(statistics.fmean(albert), statistics.fmean(bert)) <= 0:
        gaps = f"{statistics.fmean(albert):+.3f} and {statistics.fmean(bert):+.3f}"
        return Verdict(
            claim, NOT_MEASURED, f"neither overfits: held-out less training loss {gaps} nats"
        )
    # Higher is what is judged, so BERT's gap is on ALBERT's side of the comparison.
    what = "held-out less training loss at the end, BERT's against ALBERT's"
    return by_runs(claim, what, bert, albert)


def every_claim(found: dict, size: str) -> list[Verdict]:
    """Every claim with what was measured; `size`: which rows of the parameters are the config's."""

    def of(*path):
        """A pair of figures, None where it was not measured. "*" stands for the model."""
        values = []
        for name in BOTH:
            value: Any = found
            for key in path:
                value = value.get(key.replace("*", name)) if isinstance(value, dict) else None
            values.append(value)
        return values

    parts = of("parameters", size, "*", "parts")
    totals = [sum(p.values()) if p else None for p in parts]
    largest = [
        1 / n if (n := found.get(f"chip v5e none {name}", {}).get("largest")) else None
        for name in BOTH
    ]
    at_once = [_at_equal_batch(found, name) for name in BOTH]
    where, by_model = exchanged_between(found)
    sent = [
        sum(kind["bytes"] for kind in by_model[name].values()) if by_model else None
        for name in BOTH
    ]
    sizes = sorted(found.get("latency", {}), key=lambda x: [int(n) for n in x.split(" x ")])
    alone = of("latency", sizes[0], "*") if sizes else [None, None]
    many = of("latency", sizes[-1], "*") if sizes else [None, None]
    seconds, kwh = of("step", "*", "step"), of("kWh", "*")
    shape = step_shape(found)
    made = [
        by_ratio("fewer parameters", f"parameters, {size}", *totals),
        by_ratio(
            "smaller checkpoints",
            f"bytes, {size}, with moments",
            *of("parameters", size, "*", "checkpoint"),
        ),
        by_ratio(
            "less optimizer memory", f"bytes, {size}", *of("parameters", size, "*", "optimizer")
        ),
        by_ratio(
            "less training memory", "peak per chip at the same batch (v5e, no remat)", *at_once
        ),
        by_ratio("larger batches fit", "1 / rows that fit a v5e chip (no remat)", *largest),
        by_ratio("less communication", "bytes all-reduced a step over " + where, *sent),
        by_ratio("faster training steps", f"seconds of a step of {shape} here", *seconds),
        by_ratio(
            "faster inference at batch 1", f"seconds at {sizes[0] if sizes else '-'} here", *alone
        ),
        by_ratio(
            "faster inference in batches", f"seconds at {sizes[-1] if sizes else '-'} here", *many
        ),
        by_ratio(
            "cheaper to train, by operations",
            f"FLOPs per token, {size}",
            *of("parameters", size, "*", "flops_per_token"),
        ),
        by_ratio("greener at equal steps", f"kWh of a step of {shape} here", *kwh)
        if kwh[0] is not None
        else by_ratio(
            "greener at equal steps, by time", f"seconds of a step of {shape} here", *seconds
        ),
    ]
    made += on_a_device(found)
    runs = found.get("runs")
    final = {n: [c[-1][1] for c in runs[n]["valid"]] if runs else [] for n in BOTH}
    train = {n: [c[-1][1] for c in runs[n]["train"]] if runs else [] for n in BOTH}
    half = {n: [c[len(c) // 2 - 1][1] for c in runs[n]["valid"]] if runs else [] for n in BOTH}
    gap = {n: [v - t for v, t in zip(final[n], train[n], strict=True)] for n in BOTH}
    made += [
        by_gaps("better generalisation", gap["ALBERT"], gap["BERT"]),
        by_runs("slower convergence", "held-out MLM loss half-way", half["ALBERT"], half["BERT"]),
        by_runs("less expressive", "training MLM loss at the end", train["ALBERT"], train["BERT"]),
        by_runs(
            "worse at equal tokens", "held-out MLM loss at the end", final["ALBERT"], final["BERT"]
        ),
    ]
    return made


# A model may lose so much in its first metric by leaving early.
MAY_LOSE = 0.005


def on_a_device(found: dict) -> list[Verdict]:
    """Claims about what is exported, by ONNX Runtime, and about leaving early."""
    of = found.get("inference", {})

    def both(form: str, name: str) -> list[float | None]:
        there = of.get("contenders", {})
        pair = [there.get(each, {}).get(name) for each in (form, f"bert-{form}")]
        return [value[1] if isinstance(value, list) else value for value in pair]  # the median

    shapes = shapes_of(of)
    first = shapes[0] if shapes else "-"
    threads = f"{of.get('threads', '-')} threads"
    made = [
        by_ratio(
            "a small file on a device",
            "bytes of the int8 graph",
            *both("onnx-int8", "file_bytes"),
        ),
        by_ratio(
            "little memory on a device",
            "bytes held over the runtime's own, int8",
            *both("onnx-int8", "memory_bytes"),
        ),
    ]
    for form, dtype in (("onnx", "float32"), ("onnx-int8", "int8")):
        for claim, shape in (("short texts", first), ("long texts", shapes[-1] if shapes else "-")):
            made.append(
                by_ratio(
                    f"quick answers to {claim}, {dtype}",
                    f"seconds at {shape} in ONNX Runtime, {threads}",
                    *both(form, shape),
                )
            )
    left = found.get("exits")
    if not left:
        return [*made, Verdict("fewer layers when fewer will do", NOT_MEASURED, "leaving early")]
    best = {name: quickest(of) for name, of in left.items()}
    worst = max(share for _, share in best.values())
    told = ", ".join(f"{name} {share:.2f} ({rule})" for name, (rule, share) in best.items())
    what = f"seconds a text, of all layers', at most {100 * MAY_LOSE:g} points below them: {told}"
    verdict = by_ratio("", "", worst, 1.0).verdict
    return [*made, Verdict("fewer layers when fewer will do", verdict, what)]


def shapes_of(inference: dict) -> list[str]:
    """The shapes of one row that inference.py timed, such as 1x128, short ones first."""
    every = {name for facts in inference.get("contenders", {}).values() for name in facts}
    alone = [name for name in every if re.fullmatch(r"1x\d+", name)]
    return sorted(alone, key=lambda name: int(name[2:]))


def quickest(of: dict) -> tuple[str, float]:
    """Of what tools/exits.py wrote: the rule that costs at most MAY_LOSE of the first metric and
    takes the least time, and that as a share of the graph's without exits."""
    points = of["points"]
    metric = next(iter(points[0]["figures"]))
    whole = max(
        (p for p in points if p["exit"].startswith("depth:")), key=lambda p: p["mean_depth"]
    )
    least = whole["figures"][metric] - MAY_LOSE
    timed = zip(points, of["ms"], strict=True)
    ms, rule = min((ms, p["exit"]) for p, ms in timed if p["figures"][metric] >= least)
    return rule, ms / of["ms_without_exits"]


def step_shape(found: dict) -> str:
    """Of the step that was timed, in words."""
    of = found.get("of", {})
    return f"{of.get('rows', '?')} rows of {of.get('length', '?')} tokens"


def _answers(found: dict, name: str) -> dict:
    return found.get(f"chip v5e none {name}", {}).get("answers", {})


def _at_equal_batch(found: dict, name: str) -> float | None:
    fitting = [{n for n, a in _answers(found, model).items() if a.get("fits")} for model in BOTH]
    common = fitting[0] & fitting[1]
    return _answers(found, name)[max(common, key=int)]["peak"] if common else None


def exchanged_between(found: dict) -> tuple[str, dict | None]:
    """Between which devices, and by model what a step exchanges; by the TPU compiler if it was
    asked, else between the devices that are here."""
    by_model = {}
    for name in BOTH:
        fits = [a for a in _answers(found, name).values() if a.get("fits")]
        if fits:
            by_model[name] = fits[0]["exchanged"]
    if len(by_model) == len(BOTH):
        return "16 v5e chips", by_model
    if here := found.get("all-reduce"):
        return f"the {here['devices']} devices here", {n: here[n]["exchanged"] for n in BOTH}
    return "devices", None
