"""Pictures of a sweep: held-out figures over training, and what they come to."""

from pathlib import Path

import numpy as np

from albert.interop.workdir import BEST_REPORT
from tools.sweeps.grid import Overrides, Sweep
from tools.sweeps.plan import Run, is_finished
from tools.sweeps.results import Row

# (group of the logs, key, title) of what is drawn over training.
_PRETRAINING = (
    ("valid", "mlm_loss", "held-out MLM loss, nats"),
    ("valid", "sop_accuracy", "held-out SOP accuracy"),
)


def draw(sweep: Sweep, runs: list[Run], rows: list[Row], folder: Path) -> list[Path]:
    """Writes `loss.png` and `quality.png`; returns those that there is something to draw for."""
    import matplotlib

    matplotlib.use("Agg")
    if not rows:
        return []
    return [_loss(sweep, runs, folder), _quality(sweep, rows, folder)]


def label(overrides: Overrides) -> str:
    """A row's name in a legend."""
    return ", ".join(
        f"{value}" if field == "model.sharing" else f"{field.split('.')[-1]} {value}"
        for field, value in overrides.items()
    )


def _loss(sweep: Sweep, runs: list[Run], folder: Path) -> Path:
    from matplotlib import pyplot

    best = [
        (c, key)
        for c, (name, key) in sweep.columns.items()
        if name == BEST_REPORT and key != "majority"
    ]
    drawn = [("dev", key, column) for column, key in best] or _PRETRAINING
    figure, grid = pyplot.subplots(
        1, len(drawn), figsize=(6.5 * len(drawn), 5.5), layout="constrained", squeeze=False
    )
    axes = list(grid.flat)
    colours = pyplot.get_cmap("turbo")(np.linspace(0.03, 0.97, len(sweep.runs)))
    for colour, overrides in zip(colours, sweep.runs, strict=True):
        of = [run for run in runs if run.row == overrides and is_finished(run)]
        for axis, (group, key, _) in zip(axes, drawn, strict=True):
            curves = []
            for run in of:
                unit = 1e-3 if best else run.config.data.seq_length / 1e6
                each = run.config.train.batch_size * unit
                valid = [r for r in run.metrics() if r["group"] == group and key in r]
                if valid:
                    curves.append(([r["step"] * each for r in valid], [r[key] for r in valid]))
                    axis.plot(*curves[-1], color=colour, alpha=0.2, linewidth=0.8)
            if curves and len({tuple(x) for x, _ in curves}) == 1:
                mean = np.mean([y for _, y in curves], axis=0)
                axis.plot(curves[0][0], mean, color=colour, label=label(overrides))
    for axis, (_, _, title) in zip(axes, drawn, strict=True):
        axis.set_ylabel(title.removesuffix(", %"))
        axis.set_xlabel("thousand examples" if best else "million tokens")
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{sweep.title}: mean over seeds, single seeds faint")
    return _saved(figure, folder / "loss.png")


def _quality(sweep: Sweep, rows: list[Row], folder: Path) -> Path:
    from matplotlib import pyplot

    wanted = sweep.columns if sweep.center == "median" else ("MLM loss", "SOP accuracy, %")
    columns = [c for c in wanted if all(c in row.center for row in rows)]
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
