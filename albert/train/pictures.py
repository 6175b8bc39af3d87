"""Pictures of an evaluation and of a run: drawn, written as PNG, and shown by writers."""

import io
from collections.abc import Mapping
from pathlib import Path

from albert.tasks.pictures import Draw, curves
from albert.train.writers import MetricWriter
from albert.train.writers.jsonl import records

# Figures that are neither shares nor correlations, and are drawn apart or not at all.
_OTHERS = ("loss", "threshold")


def png_of(draw: Draw, width: float = 6.0, height: float = 5.0) -> bytes:
    """One picture, so many inches large."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure.subplots())
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def write_pictures(
    folder: Path, writer: MetricWriter, step: int, pictures: Mapping[str, Draw]
) -> None:
    """Writes NAME.png into a folder, and shows the same pictures as those of a step."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in pictures.items():
        png = png_of(draw)
        (folder / f"{name}.png").write_bytes(png)
        writer.write_picture(step, name, png)


def pictures_of_run(workdir: Path, evaluation: str, step: int) -> dict[str, Draw]:
    """An evaluation's figures over the steps of a run, from its logs, with a mark at a step."""
    logged = [r for r in records(workdir / "metrics.jsonl") if r["group"] == evaluation]
    steps = [record["step"] for record in logged]
    lines = {
        name: [record[name] for record in logged]
        for name in (logged[0] if logged else {})
        if name not in ("step", "group", *_OTHERS)
        and all(name in record and -1 <= record[name] <= 1 for record in logged)
    }
    found = {"figures": curves(steps, lines, "step", step)} if lines else {}
    if logged and all("loss" in record for record in logged):
        losses = {evaluation: [record["loss"] for record in logged]}
        found["loss"] = curves(steps, losses, "step", step)
    return found
