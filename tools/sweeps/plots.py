"""Pictures of a sweep: loss over tokens, and what parameters buy."""

from pathlib import Path

import numpy as np

from tools.sweeps.grid import Overrides, Sweep
from tools.sweeps.plan import Run, is_finished
from tools.sweeps.results import Row


def draw(sweep: Sweep, runs: list[Run], rows: list[Row], folder: Path) -> list[Path]:
    """Writes `loss.png` and `quality.png`; returns those that there is something to draw for."""
    import matplotlib

    matplotlib.use("Agg")
    return [_loss(sweep, runs, folder), _quality(sweep, rows, folder)] if rows else []


def label(overrides: Overrides) -> str:
    """A row's name in a legend."""
    return ", ".join(
        f"{value}" if field == "model.sharing" else f"{field.split('.')[-1]} {value}"
        for field, value in overrides.items()
    )


def _loss(sweep: Sweep, runs: list[Run], folder: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    colours = pyplot.get_cmap("turbo")(np.linspace(0.03, 0.97, len(sweep.runs)))
    for colour, overrides in zip(colours, sweep.runs, strict=True):
        of = [run for run in runs if run.row == overrides and is_finished(run)]
        for axis, key in zip(axes, ("mlm_loss", "sop_accuracy"), strict=True):
            curves = []
            for run in of:
                tokens = run.config.train.batch_size * run.config.data.seq_length / 1e6
                valid = [r for r in run.metrics() if r["group"] == "valid" and key in r]
                if valid:
                    curves.append(([r["step"] * tokens for r in valid], [r[key] for r in valid]))
                    axis.plot(*curves[-1], color=colour, alpha=0.2, linewidth=0.8)
            if curves and len({tuple(x) for x, _ in curves}) == 1:
                mean = np.mean([y for _, y in curves], axis=0)
                axis.plot(curves[0][0], mean, color=colour, label=label(overrides))
    axes[0].set_ylabel("held-out MLM loss, nats")
    axes[1].set_ylabel("held-out SOP accuracy")
    for axis in axes:
        axis.set_xlabel("million tokens")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{sweep.title}: mean over seeds, single seeds faint")
    return _saved(figure, folder / "loss.png")


def _quality(sweep: Sweep, rows: list[Row], folder: Path) -> Path:
    from matplotlib import pyplot

    columns = [c for c in ("MLM loss", "SOP accuracy, %") if all(c in row.mean for row in rows)]
    colours = pyplot.get_cmap("turbo")(np.linspace(0.03, 0.97, len(rows)))
    figure, axes = pyplot.subplots(
        1, len(columns), figsize=(6.5 * len(columns), 5.5), layout="constrained", squeeze=False
    )
    for axis, column in zip(axes.flat, columns, strict=True):
        for colour, row in zip(colours, rows, strict=True):
            mean, spread = row.mean[column], row.spread.get(column, 0.0)
            axis.errorbar(
                row.parameters,
                mean,
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


def _saved(figure, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
