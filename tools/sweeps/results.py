"""What the runs of a sweep came to, as a Markdown table, a CSV file and TensorBoard's page of
hyper-parameters."""

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from albert.models.cost import without_heads
from albert.train.cost import parameters_of
from albert.train.phases import tokens_until
from tools.sweeps.grid import Overrides, Sweep
from tools.sweeps.plan import Run, is_finished
from tools.sweeps.study import Ended

# Column -> key in a run's evaluation. The head of the second objective judges the one that it was
# trained for.
_QUALITY = {
    "MLM loss": "mlm_loss",
    "MLM loss, shown [MASK]": "mlm_loss_shown_mask",
    "gain, nats": "gain",
    "MLM accuracy, %": "mlm_accuracy",
    "NSP accuracy, %": "sop_accuracy",
    "SOP accuracy, %": "sop_accuracy",
}
_PARAMETERS = "parameters without heads"
# Column -> decimals; of others 2 for percentages, else 3.
_COST = {"real tokens/s": 0, "peak MB": 0, "training hours": 3}


@dataclasses.dataclass
class Row:
    """One row of the table: the runs that differ in nothing but their seed."""

    overrides: Overrides
    parameters: int  # without heads, as the paper counts
    steps: int
    tokens: int  # padding included
    of_seeds: list[dict[str, float]]  # by column, of every seed
    center: dict[str, float]  # by column: mean or median over seeds
    spread: dict[str, float]  # sample standard deviation; only where there are several seeds
    unigram_entropy: float | None  # None: the runs have none
    published: dict[str, object]
    trial: int | None = None  # of a search
    outcome: str = ""  # of a trial that was not trained to its end


def collect(sweep: Sweep, runs: list[Run]) -> list[Row]:
    """A row for each point of the grid that has a finished run."""
    rows = []
    for overrides in sweep.runs:
        done = [run for run in runs if run.row == overrides and is_finished(run)]
        if not done:
            continue
        rows.append(_row(sweep, overrides, done))
    return rows


def _row(sweep: Sweep, overrides: Overrides, done: list[Run]) -> Row:
    figures = [_figures(sweep, run) for run in done]
    columns = [c for c in figures[0] if all(c in f for f in figures)]
    center = statistics.median if sweep.center == "median" else statistics.fmean
    config = done[0].trained
    return Row(
        overrides=overrides,
        parameters=without_heads(parameters_of(config)),
        steps=config.train.num_steps,
        tokens=_tokens(done[0]),
        of_seeds=figures,
        center={c: center([f[c] for f in figures]) for c in columns},
        spread={c: statistics.stdev(f[c] for f in figures) for c in columns}
        if len(done) > 1
        else {},
        unigram_entropy=_evaluation(done[0]).get("unigram_entropy"),
        published=_published(sweep, overrides),
    )


def _tokens(run: Run) -> int:
    config = run.trained
    # What a run with phases has kept is its last one.
    planned = run.config if config.phases else config
    return tokens_until(planned, config.train.num_steps)


def collect_trials(sweep: Sweep, ended: list[Ended]) -> list[Row]:
    """A row for each trial of a search that is over, in the order given."""
    assert sweep.search is not None
    rows = []
    for trial in ended:
        run, config = trial.run, trial.run.trained
        if not trial.outcome:
            row = _row(sweep, run.row, [run])
        else:
            parameters = without_heads(parameters_of(config))
            steps = config.train.num_steps
            row = Row(run.row, parameters, steps, _tokens(run), [], {}, {}, None, {})
        if trial.figure is not None:
            row.center = {sweep.search.figure: trial.figure} | row.center
        row.trial, row.outcome = trial.number, trial.outcome or "finished"
        rows.append(row)
    return rows


def _evaluation(run: Run) -> dict:
    return json.loads((run.workdir / f"eval_{run.trained.train.num_steps}.json").read_text())


def _figures(sweep: Sweep, run: Run) -> dict[str, float]:
    found: dict[str, float] = {}
    evaluation = _evaluation(run)
    objective = getattr(run.config.data, "sentence_objective", None)
    other = {"nsp": "SOP", "sop": "NSP"}.get(str(objective), "none")
    for column, key in _QUALITY.items():
        if key in evaluation and not column.startswith(other):
            found[column] = _in_units(column, evaluation[key])
    records = run.metrics()
    seconds = seconds_of_step(records)
    if seconds is not None:
        train = [r for r in records if r["group"] == "train" and "step_seconds" in r]
        found["real tokens/s"] = statistics.median(r["real_tokens_per_second"] for r in train)
        found["peak MB"] = max(r["peak_memory_bytes"] for r in train) / 1e6
        found["training hours"] = seconds * run.trained.train.num_steps / 3600
    for column, (name, key) in sweep.columns.items():
        path = run.workdir / name.format(step=run.trained.train.num_steps)
        if path.is_file():
            value = json.loads(path.read_text())[key]
            mean = statistics.fmean(value) if isinstance(value, list) else value
            found[column] = _in_units(column, mean)
    return found


def seconds_of_step(records: list[dict]) -> float | None:
    """The median of what `metrics.jsonl` says; None where nothing was trained."""
    seconds = [r["step_seconds"] for r in records if r["group"] == "train" and "step_seconds" in r]
    return statistics.median(seconds) if seconds else None


def _in_units(column: str, value: float) -> float:
    return 100 * value if column.endswith("%") else value


def _published(sweep: Sweep, overrides: Overrides) -> dict[str, object]:
    for which, figures in sweep.published:
        if which.items() <= overrides.items():
            return figures
    return {}


def _decimals(column: str) -> int:
    return _COST.get(column, 2 if column.endswith("%") else 3)


def _varied(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(field for row in rows for field in row.overrides))


def write_tables(
    sweep: Sweep,
    rows: list[Row],
    total: int,
    folder: Path,
    command: str,
    told: Sequence[str] = (),
) -> Path:
    """Writes `table.md` and `table.csv`; returns the first.

    Args:
      sweep: for title and note.
      rows: as collected.
      total: rows that the sweep has, finished or not.
      folder: where to.
      command: what made them, for the reader.
      told: sentences about rows that are not in the table.
    """
    fields = _varied(rows)
    compared = [sweep.search.figure] if sweep.search else []
    columns = list(dict.fromkeys([*compared, *_QUALITY, *sweep.columns, *_COST]))
    columns = [c for c in columns if any(c in r.center for r in rows)]
    theirs = list(dict.fromkeys(c for row in rows for c in row.published))
    heads = ["trial", "outcome"] if sweep.search else []
    heads += [f.split(".")[-1] for f in fields] + [_PARAMETERS] + columns
    heads += ["seeds"] + [f"paper: {c}" for c in theirs]

    def cell(row: Row, column: str) -> str:
        if column not in row.center:
            return "-"
        digits = _decimals(column)
        text = f"{row.center[column]:,.{digits}f}"
        if column in row.spread and column not in _COST:
            text += f" ± {row.spread[column]:.{digits}f}"
        return text

    lines = [f"# {sweep.title}", "", f"`{command}`", ""]
    if left := total - len(rows) - len(told):
        lines += [f"**{left} of {total} rows are not there yet.**", ""]
    if rows:
        lines += [_note(sweep, rows), ""]
        lines.append(f"| {' | '.join(heads)} |")
        lines.append("|" + "---|" * len(heads))
        for row in rows:
            cells = [str(row.trial), row.outcome] if sweep.search else []
            cells += [short(row.overrides.get(f, "")) for f in fields]
            cells += [
                f"{row.parameters:,}",
                *(cell(row, c) for c in columns),
                str(len(row.of_seeds)),
            ]
            cells += [str(row.published.get(c, "")) for c in theirs]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *told] if told else []
    if sweep.note:
        lines += ["", sweep.note]
    path = folder / "table.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_csv(sweep, rows, fields, columns, theirs, folder / "table.csv")
    return path


def short(value: object) -> str:
    """A value of a field for people: of a number that was drawn the digits that matter."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _note(sweep: Sweep, rows: list[Row]) -> str:
    steps = sorted({row.steps for row in rows})
    tokens = sorted({row.tokens for row in rows})
    span = " to ".join(dict.fromkeys(f"{x:,}" for x in (steps[0], steps[-1])))
    read = " to ".join(dict.fromkeys(f"{x / 1e6:,.2f}" for x in (tokens[0], tokens[-1])))
    known = [row.unigram_entropy for row in rows if row.unigram_entropy is not None]
    note = f"{span} steps. "
    if known:  # of pretraining, whose rows have one length
        entropy = " to ".join(dict.fromkeys(f"{f(known):.3f}" for f in (min, max)))
        note = (
            f"{span} steps, {read} million tokens (padding included). Unigram entropy "
            f"{entropy} nats; losses are in nats too. "
        )
    if sweep.search is None:
        return note + f"Held-out figures: {sweep.center} ± sample standard deviation over seeds."
    better = "highest" if sweep.search.maximize else "lowest"
    return note + (
        f"Finished trials first, the {better} {sweep.search.figure} on top; then those that were "
        "pruned and those that diverged, each with its last finite one. What was chosen by a "
        "held-out figure is flattered by it."
    )


def _write_csv(
    sweep: Sweep,
    rows: list[Row],
    fields: list[str],
    columns: list[str],
    theirs: list[str],
    path: Path,
) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        spreads = [f"{c}, standard deviation" for c in columns]
        writer.writerow(
            (["trial", "outcome"] if sweep.search else [])
            + [*fields, _PARAMETERS, "steps", "tokens", "seeds", *columns, *spreads]
            + [f"paper: {c}" for c in theirs]
        )
        for row in rows:
            writer.writerow(
                [
                    *([row.trial, row.outcome] if sweep.search else []),
                    *(row.overrides.get(f, "") for f in fields),
                    row.parameters,
                    row.steps,
                    row.tokens,
                    len(row.of_seeds),
                    *(row.center.get(c, "") for c in columns),
                    *(row.spread.get(c, "") for c in columns),
                    *(row.published.get(c, "") for c in theirs),
                ]
            )


def write_hyperparameters(sweep: Sweep, runs: list[Run]) -> None:
    """TensorBoard's page of hyper-parameters: a line for each finished run."""
    for run in runs:
        folder = run.workdir / "hparams"
        if not is_finished(run) or folder.is_dir():
            continue
        varied = {name: _plain(value) for name, value in {**run.row, "seed": run.seed}.items()}
        figures = {f"final/{k}": v for k, v in _figures(sweep, run).items() if math.isfinite(v)}
        with SummaryWriter(str(folder)) as board:
            board.add_hparams(varied, figures, name=".", global_step=run.trained.train.num_steps)


def _plain(value: object) -> object:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
