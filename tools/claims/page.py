"""The page of the claims report: tables and pictures of what was measured, and the verdicts."""

import re
import statistics
from pathlib import Path

from tools.claims.verdicts import (
    BOTH,
    CLEARLY,
    DEVIATIONS,
    SLIGHTLY,
    every_claim,
    exchanged_between,
    quickest,
    step_shape,
)
from tools.compilers.targets import INSTALL, TARGETS

_MISSING = "Not measured: "
_SPLIT = ("parameters", "optimizer", "gradients", "activations")


def table(heads: list[str], rows: list[list]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)] + [
        f"| {' | '.join(map(str, row))} |" for row in rows
    ]


def _million(number: float) -> str:
    return f"{number / 1e6:,.1f}"


def _gb(number: float) -> str:
    return f"{number / 1e9:.3f}"


def write(found: dict, size: str, command: str, energy: list[str], folder: Path) -> Path:
    """Writes claims.md and its pictures; returns the page.

    Args:
      found: the notebook's values.
      size: which of the sizes the measured config has.
      command: what made the page.
      energy: lines of the section on energy.
      folder: the page's; pictures go into claims/ below it.
    """
    import matplotlib

    matplotlib.use("Agg")
    pictures = folder / "claims"
    pictures.mkdir(parents=True, exist_ok=True)
    lines = ["# What is said of ALBERT, and what was measured", "", f"`{command}`", ""]
    lines += ["Measurements are kept in claims/measured.json. They were made on", ""]
    for where, names in _places(found).items():
        lines.append(f"- {where}: {', '.join(names)}")
    lines.append("")
    lines += ["## Claims", ""]
    lines += table(
        ["claim", "here", "number"],
        [[v.claim, f"**{v.verdict}**", v.number] for v in every_claim(found, size)],
    )
    lines += [
        "",
        f"A ratio is true up to {CLEARLY}, partly up to {SLIGHTLY}. A difference between runs is "
        f"true from {DEVIATIONS:.0f} standard deviations on (of both models together), partly "
        "below that, false with the other sign. BERT is the same shape, nothing shared and E = H: "
        "what differs comes from both. The last four rows are of the runs below, whose models are "
        "smaller.",
        "",
    ]
    lines += _parameter_section(found, pictures)
    lines += _memory_section(found, pictures)
    lines += _communication_section(found)
    lines += _time_section(found, pictures)
    lines += _device_section(found)
    lines += _run_section(found, pictures)
    lines += ["## Energy", "", *energy]
    page = folder / "claims.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _parameter_section(found: dict, pictures: Path) -> list[str]:
    rows, lines = [], ["## Parameters and what is stored", ""]
    sizes = found["parameters"]
    parts = list(dict.fromkeys(p for s in sizes.values() for m in s.values() for p in m["parts"]))
    for size, models in sizes.items():
        for name, of in models.items():
            cells = [_million(of["parts"].get(part, 0)) for part in parts]
            rows.append(
                [
                    size,
                    name,
                    _million(sum(of["parts"].values())),
                    *cells,
                    _gb(of["checkpoint"]),
                    _gb(of["optimizer"]),
                    f"{of['flops_per_token'] / 1e9:.2f}",
                ]
            )
    heads = ["size", "model", "total", *parts, "checkpoint, GB", "optimizer, GB", "GFLOP per token"]
    lines += table(heads, rows)
    lines += [
        "",
        "Parameters in millions; checkpoints hold two moments. The embedding is V x H in BERT and "
        "V x E + E x H here (embeddings and embedding_hidden_mapping_in). Of every part the "
        "optimizer stores two numbers a parameter and a checkpoint three, 4 bytes each in float32.",
        "",
        "![Parameters by part](claims/parameters.png)",
        "",
    ]
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    labels = [f"{name}-{size}" for size, models in sizes.items() for name in models]
    bottom = [0.0] * len(labels)
    for part in parts:
        heights = [m["parts"].get(part, 0) / 1e6 for s in sizes.values() for m in s.values()]
        axis.bar(labels, heights, bottom=bottom, label=part)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axis.set_ylabel("million parameters")
    axis.tick_params(axis="x", rotation=30)
    axis.legend(fontsize=8)
    figure.savefig(pictures / "parameters.png", dpi=110)
    pyplot.close(figure)
    return lines


def _memory_section(found: dict, pictures: Path) -> list[str]:
    lines = ["## Training memory", "", "Per chip of 16, by the TPU compiler, without a TPU:", ""]
    rows = []
    chips = {tuple(n.split(" ")[1:]): v for n, v in found.items() if n.startswith("chip ")}
    for (kind, remat, model), value in chips.items():
        for batch, answer in sorted(value["answers"].items(), key=lambda item: int(item[0])):
            rows.append(
                [f"{kind} ({TARGETS[kind].memory / 2**30:.2f} GiB)", remat, model, batch]
                + (
                    _chip_split(found, model, answer)
                    if answer["fits"]
                    else ["-", "-", "-", "-", "does not fit"]
                )
            )
    if rows:
        heads = ["chip", "remat", "model", "rows per chip", *(f"{x}, GB" for x in _SPLIT)]
        lines += table([*heads, "peak, GB"], rows)
        lines += [
            "",
            f"Rows of {found['of']['data.seq_length']} tokens. Parameters, moments and "
            "gradients by their number; activations are the rest of the peak, the batch "
            "among them.",
        ]
    else:
        lines.append(f"{_MISSING}no TPU compiler. {INSTALL['tpu']}.")
    here = {n.removeprefix("memory "): v for n, v in found.items() if n.startswith("memory ")}
    if here:
        lines += ["", "On this machine, by its compiler, GB:", ""]
        rows = [
            [shape, model, remat, *map(_gb, _split(sizes)), _gb(sizes["peak"])]
            for shape, of in here.items()
            for model, remats in of.items()
            for remat, sizes in remats.items()
        ]
        lines += table(["rows x length", "model", "remat", *_SPLIT, "peak"], rows)
        lines += ["", "Activations are the temporaries less the gradients."]
    if chips or here:
        _draw_memory(here, chips, pictures / "memory.png")
        lines += ["", "![Training memory](claims/memory.png)"]
    for model, rest in found.get("largest here", {}).items():
        lines += [
            "",
            f"{model}: {rest['rows']:,} rows of {rest['length']} tokens fit the "
            f"{_gb(rest['bytes'])} GB of this machine (no remat; asked of the compiler, "
            "to within a fourth of the power of two below).",
        ]
    return [*lines, ""]


def _chip_split(found: dict, model: str, answer: dict) -> list[str]:
    """Cells of _SPLIT and the peak, of what a TPU's compiler answered."""
    of = next(s[model] for name, s in found["parameters"].items())  # the first is the config's
    parameters = of["checkpoint"] - of["optimizer"]
    activations = answer["peak"] - parameters - of["optimizer"] - parameters
    return [_gb(x) for x in (parameters, of["optimizer"], parameters, activations, answer["peak"])]


def _places(found: dict) -> dict[str, list[str]]:
    """Where and at which commit -> the measurements made there; those of chips by their kind."""
    places: dict[str, list[str]] = {}
    for name, where in found.get("where", {}).items():
        words = "TPU compiler" if name.startswith("chip ") else name
        names = places.setdefault(where, [])
        names += [words] if words not in names else []
    return places


def _split(sizes: dict) -> list[float]:
    state, gradients = sizes["state"], sizes["gradients"]
    return [state["parameters"], state["optimizer"], gradients, sizes["temporaries"] - gradients]


def _draw_memory(here: dict, chips: dict, path: Path) -> None:
    """Left: bytes by part of every shape here. Right: peak by batch on a v5e."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(14, 5), layout="constrained", width_ratios=(2, 1)
    )
    names, heights = [], []
    for shape, of in here.items():
        for model, remats in of.items():
            for remat, sizes in remats.items():
                names.append(f"{model} {shape}, {remat}")
                heights.append(_split(sizes))
    bottom = [0.0] * len(names)
    for number, part in enumerate(_SPLIT):
        values = [h[number] / 1e9 for h in heights]
        left.bar(names, values, bottom=bottom, label=part)
        bottom = [b + v for b, v in zip(bottom, values, strict=True)]
    left.set(ylabel="GB", title="here: rows x length, remat")
    left.tick_params(axis="x", rotation=90, labelsize=7)
    if names:
        left.legend(fontsize=8)
    colours = dict(zip(BOTH, ("tab:blue", "tab:orange"), strict=True))
    kinds = sorted({kind for kind, _, _ in chips})
    for (kind, remat, model), value in chips.items():
        fits = sorted((int(n), a["peak"] / 1e9) for n, a in value["answers"].items() if a["fits"])
        right.plot(
            *zip(*fits, strict=True),
            marker="o" if kind == kinds[0] else "s",
            color=colours[model],
            ls="-" if remat == "none" else "--",
            label=f"{model}, {kind}, remat {remat}",
        ) if fits else None
    for kind in kinds:
        right.axhline(TARGETS[kind].memory / 1e9, color="grey", lw=0.8)
        right.text(
            0.01,
            TARGETS[kind].memory / 1e9,
            f"memory of a {kind}",
            fontsize=7,
            va="top",
            transform=right.get_yaxis_transform(),
        )
    right.set(xlabel="rows per chip", ylabel="peak, GB", title="TPU, by its compiler")
    right.set_ylim(bottom=0)
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter("{x:g}")
    if kinds:
        right.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _communication_section(found: dict) -> list[str]:
    lines = ["## Bytes exchanged in a step", ""]
    where, by_model = exchanged_between(found)
    if by_model is None:
        return [*lines, f"{_MISSING}one device here, and no TPU compiler. {INSTALL['tpu']}.", ""]
    rows = [
        [name, kind, sums["number"], _million(sums["bytes"])]
        for name in BOTH
        for kind, sums in by_model[name].items()
    ]
    lines += table(["model", "operation", "how often", "MB of results"], rows)
    return [
        *lines,
        "",
        f"Data parallel over {where}, from the compiled program; what is in the "
        "loop over the depth counts for every turn.",
        "",
    ]


def _time_section(found: dict, pictures: Path) -> list[str]:
    lines = ["## Time here", ""]
    if "step" in found:
        parts = ("forward", "backward", "optimizer", "step")
        rows = [[n, *(f"{found['step'][n][p]:.2f}" for p in parts)] for n in BOTH]
        lines += table(["model", *(f"{part}, s" for part in parts)], rows)
        lines += [
            "",
            f"{step_shape(found)}, float32, one device, medians of 5 in turns; "
            "backward and optimizer are differences of medians.",
            "",
        ]
        if here := found.get("all-reduce"):
            sums = ", ".join(f"{n} {1000 * here[n]['seconds']:.1f} ms" for n in BOTH)
            lines += [
                f"Summing an array of the gradients' size over the {here['devices']} devices "
                f"here: {sums}.",
                "",
            ]
        else:
            lines += ["There is one device, so there is no all-reduce to time.", ""]
    if "latency" in found:
        rows = [
            [
                shape,
                *(f"{1000 * v[n]:,.1f}" for n in BOTH),
                f"{v['ALBERT'] / v['BERT']:.2f}",
                *(f"{int(shape.split(' x ')[0]) / v[n]:,.2f}" for n in BOTH),
            ]
            for shape, v in found["latency"].items()
        ]
        lines += table(
            ["rows x length", "ALBERT, ms", "BERT, ms", "ratio", "ALBERT, rows/s", "BERT, rows/s"],
            rows,
        )
        lines += ["", "Encoder and pooler, float32, medians of 5 in turns.", ""]
    if "depths" in found:
        from matplotlib import pyplot

        figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
        rows = []
        for name in BOTH:
            steps = found["depths"][name]
            rows += [
                [name, n, f"{t['lower']:.1f}", f"{t['compile']:.1f}"] for n, t in steps.items()
            ]
            axis.plot(
                [int(n) for n in steps],
                [sum(t.values()) for t in steps.values()],
                marker="o",
                label=name,
            )
        axis.set_xlabel("layers")
        axis.set_ylabel("seconds until the step can run")
        axis.set_ylim(bottom=0)
        axis.legend()
        figure.savefig(pictures / "compile.png", dpi=110)
        pyplot.close(figure)
        lines += table(["model", "layers", "tracing, s", "compiling, s"], rows)
        lines += ["", "![Compile time against depth](claims/compile.png)", ""]
    return lines


def _device_section(found: dict) -> list[str]:
    lines = ["## On a device", ""]
    if of := found.get("inference"):
        shapes = [name for name in next(iter(of["contenders"].values())) if _is_shape(name)]
        rows = [
            [
                name,
                f"{facts['file_bytes'] / 1e6:.1f}",
                f"{facts['memory_bytes'] / 2**20:.0f}",
                *(f"{1000 * facts[shape][1]:.1f}" for shape in shapes),
            ]
            for name, facts in of["contenders"].items()
        ]
        lines += table(["what", "file, MB", "memory, MiB", *(f"ms, {s}" for s in shapes)], rows)
        lines += [
            "",
            f"The encoder, {of['threads']} threads, medians in turns, by benchmarks/inference.py, "
            "which says what each is; memory is over that of the library alone.",
            "",
        ]
    else:
        lines += [
            f"{_MISSING}run `python benchmarks/inference.py | tee FILE` and name FILE with "
            "--inference.",
            "",
        ]
    for name, of in found.get("exits", {}).items():
        rule, share = quickest(of)
        lines += [
            f"Leaving early, {name}: `{rule}` takes {share:.2f} of the time of all layers "
            f"({of['ms_without_exits']:.3g} ms a text, {of['threads']} threads, "
            f"{of['texts_timed']} of {of['examples']} texts timed).",
            "",
        ]
    return lines


def _is_shape(name: str) -> bool:
    return re.fullmatch(r"\d+x\d+", name) is not None


def _run_section(found: dict, pictures: Path) -> list[str]:
    lines = ["## Convergence and generalisation", ""]
    runs = found.get("runs")
    if not runs:
        return [
            *lines,
            f"{_MISSING}no runs were named. Make some with `python tools/sweep.py "
            "configs/ablations/sharing.py:laptop --workdir=DIR` and name them with "
            "--albert_runs and --bert_runs.",
            "",
        ]
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    for name, colour in zip(BOTH, ("tab:blue", "tab:orange"), strict=True):
        of = runs[name]
        for number, (train, valid) in enumerate(zip(of["train"], of["valid"], strict=True)):
            tokens, seconds = of["tokens"][number] / 1e6, of["step_seconds"][number]
            steps, losses = zip(*valid, strict=True)
            label = name if number == 0 else None
            axes[0].plot([s * tokens for s in steps], losses, color=colour, label=label)
            axes[1].plot([s * seconds / 60 for s in steps], losses, color=colour, label=label)
            axes[2].plot([s * tokens for s in steps], losses, color=colour, label=label)
            label = f"{name}, training" if number == 0 else None
            steps, losses = zip(*train, strict=True)
            axes[2].plot([s * tokens for s in steps], losses, color=colour, label=label, ls=":")
    for axis, (label, title) in zip(
        axes,
        (
            ("million tokens", "held-out loss by tokens"),
            ("minutes of training steps", "held-out loss by time"),
            ("million tokens", "held-out and training loss"),
        ),
        strict=True,
    ):
        axis.set(xlabel=label, title=title, ylabel="MLM loss, nats")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(pictures / "convergence.png", dpi=110)
    pyplot.close(figure)
    rows = []
    for name in BOTH:
        of = runs[name]
        final = [c[-1][1] for c in of["valid"]]
        train = [c[-1][1] for c in of["train"]]
        rows.append(
            [
                name,
                of["shape"],
                len(final),
                f"{statistics.fmean(train):.3f}",
                f"{statistics.fmean(final):.3f}",
                f"{statistics.fmean(v - t for v, t in zip(final, train, strict=True)):+.3f}",
                f"{statistics.fmean(of['epochs']):.2f}",
                f"{1000 * statistics.median(of['step_seconds']):.0f}",
            ]
        )
    lines += table(
        ["model", "of", "runs", "training loss", "held-out loss", "gap", "epochs", "ms a step"],
        rows,
    )
    return [
        *lines,
        "",
        "The training loss is the mean since the last log but one. Text seen once "
        "tells nothing of overfitting: look at the epochs. E differs as well as the sharing: a "
        "sweep over both tells them apart.",
        "",
        "![Convergence](claims/convergence.png)",
        "",
    ]
