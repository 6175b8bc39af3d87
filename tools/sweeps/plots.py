"""Pictures of a sweep: held-out figures over training, and what they come to."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from albert.interop.workdir import BEST_REPORT
from albert.train.phases import tokens_until
from tools.sweeps.grid import Overrides, Sweep
from tools.sweeps.plan import Run, is_finished
from tools.sweeps.results import Row, seconds_of_step, short

# (group of the logs, key, title) of what is drawn over training.
_PRETRAINING = (
    ("valid", "gain", "gain where [MASK] is shown, nats"),
    ("valid", "sop_accuracy", "held-out SOP accuracy"),
)


def draw(sweep: Sweep, runs: list[Run], rows: list[Row], folder: Path) -> list[Path]:
    """Writes `loss.png` and `quality.png`; returns those that there is something to draw for."""
    import matplotlib

    matplotlib.use("Agg")
    if not rows:
        return []
    drawn = [_loss(sweep, runs, folder)]
    if quality := _quality(sweep, rows, folder):
        drawn.append(quality)
    return drawn


def label(overrides: Overrides) -> str:
    """A row's name in a legend."""
    return ", ".join(
        f"{value}" if field == "model.sharing" else f"{field.split('.')[-1]} {short(value)}"
        for field, value in overrides.items()
    )


def _loss(sweep: Sweep, runs: list[Run], folder: Path) -> Path:
    """Figures of pretraining over tokens and, below, over seconds; of other tasks over examples."""
    from matplotlib import pyplot

    best = [
        (c, key)
        for c, (name, key) in sweep.columns.items()
        if name == BEST_REPORT and key != "majority"
    ]
    drawn = [("dev", key, column) for column, key in best] or _PRETRAINING
    over = [_thousand_examples] if best else [_million_tokens, _training_seconds]
    figure, grid = pyplot.subplots(
        len(over),
        len(drawn),
        figsize=(6.5 * len(drawn), 5.5 * len(over)),
        layout="constrained",
        squeeze=False,
    )
    done = [run for run in runs if is_finished(run)]
    rows = [overrides for overrides in sweep.runs if any(run.row == overrides for run in done)]
    colours = pyplot.get_cmap("turbo")(np.linspace(0.03, 0.97, len(rows)))
    for axes, seen in zip(grid, over, strict=True):
        for axis, (group, key, title) in zip(axes, drawn, strict=True):
            for colour, overrides in zip(colours, rows, strict=True):
                of = [run for run in done if run.row == overrides]
                curves = [_curve(run, group, key, seen) for run in of]
                _draw_curves(axis, [c for c in curves if c[0]], colour, label(overrides))
            axis.set_ylabel(title.removesuffix(", %"))
            axis.set_xlabel(seen.__name__.removeprefix("_").replace("_", " "))
            axis.grid(alpha=0.3)
        axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{sweep.title}: mean over seeds, single seeds faint")
    return _saved(figure, folder / "loss.png")


def _thousand_examples(run: Run, steps: list[int]) -> list[float]:
    return [step * run.config.train.batch_size / 1e3 for step in steps]


def _million_tokens(run: Run, steps: list[int]) -> list[float]:
    return [tokens_until(run.config, step) / 1e6 for step in steps]


def _training_seconds(run: Run, steps: list[int]) -> list[float]:
    """Of steps alone, by their median: evaluations and compiling are left out."""
    seconds = seconds_of_step(run.metrics()) or 0.0
    return [step * seconds for step in steps]


def _curve(run: Run, group: str, key: str, seen) -> tuple[list[float], list[float]]:
    records = [r for r in run.metrics() if r["group"] == group and key in r]
    return seen(run, [r["step"] for r in records]), [r[key] for r in records]


def _draw_curves(axis, curves, colour, name: str) -> None:
    """Every seed faintly, and their mean at the mean of where they were."""
    for curve in curves:
        axis.plot(*curve, color=colour, alpha=0.2, linewidth=0.8)
    if curves and len({len(x) for x, _ in curves}) == 1:
        x, y = np.mean(curves, axis=0)
        axis.plot(x, y, color=colour, label=name)


def _quality(sweep: Sweep, rows: list[Row], folder: Path) -> Path | None:
    """What every row came to; None where there is no figure that all of them have."""
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    def shared(wanted: Iterable[str]) -> list[str]:
        return [c for c in wanted if all(c in row.center for row in rows)]

    own, of_pretraining = shared(sweep.columns), shared(("gain, nats", "SOP accuracy, %"))
    columns = own if sweep.center == "median" else of_pretraining or own
    if not columns:
        return None
    if len({row.parameters for row in rows}) == 1 and sweep.center == "median":
        return _seeds(sweep, rows, columns, folder)
    colours = pyplot.get_cmap("turbo")(np.linspace(0.03, 0.97, len(rows)))
    figure, axes = pyplot.subplots(
        1, len(columns), figsize=(6.5 * len(columns), 5.5), layout="constrained", squeeze=False
    )
    for axis, column in zip(axes.flat, columns, strict=True):
        for colour, row in zip(colours, rows, strict=True):
            center, spread = row.center[column], row.spread.get(column, 0.0)
            axis.errorbar(
                row.parameters,
                center,
                spread,
                marker="o",
                markersize=4,
                capsize=2,
                color=colour,
                label=label(row.overrides),
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("parameters without heads")
        axis.set_ylabel(f"held-out {column}")
        axis.grid(alpha=0.3)
    axes.flat[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{sweep.title}: bars are one standard deviation over seeds")
    return _saved(figure, folder / "quality.png")


def _seeds(sweep: Sweep, rows: list[Row], columns: list[str], folder: Path) -> Path:
    """A line for each row: its seeds, and a bar at their median."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1,
        len(columns),
        figsize=(5.5 * len(columns), 1.8 + 0.28 * len(rows)),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axis, column in zip(axes.flat, columns, strict=True):
        for place, row in enumerate(rows):
            values = [seed[column] for seed in row.of_seeds]
            axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.5, markersize=4)
            axis.plot(row.center[column], place, "|", color="black", markersize=12)
        axis.set_yticks(range(len(rows)), [label(row.overrides) or "all" for row in rows])
        axis.set_xlabel(f"held-out {column}")
        axis.grid(alpha=0.3)
    axes[0, 0].invert_yaxis()  # of all, which share it
    figure.suptitle(f"{sweep.title}: every seed, and their median")
    return _saved(figure, folder / "quality.png")


def _saved(figure, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
