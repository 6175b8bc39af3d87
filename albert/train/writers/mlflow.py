"""MLflow: a run that every start goes on with, on the server or in the file that its own variable
MLFLOW_TRACKING_URI names, in the experiment of MLFLOW_EXPERIMENT_NAME."""

import importlib
import io
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from albert.runtime.paths import replace_text
from albert.train.writers.base import About, Writer

_EXPERIMENT = "albert"  # where MLFLOW_EXPERIMENT_NAME names none
_PARAMETERS_AT_ONCE, _LETTERS = 100, 6000  # of what it takes


class MLflow(Writer):
    """What it has is asked of the run: every line is one transaction, with its step in it."""

    needs, install, is_service = "mlflow", "requirements-mlflow.txt", True

    def __init__(self, about: About):
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        path = about.kept("mlflow")
        if path.is_file():
            self._id = json.loads(path.read_text())["id"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._created(about)
            replace_text(path, json.dumps({"id": self._id}) + "\n")
        figures = self._client.get_run(self._id).data.metrics
        self.have = {
            name.removesuffix("/step"): int(value)
            for name, value in figures.items()
            if name.endswith("/step")
        }

    @staticmethod
    def place(about: About) -> str:
        return "MLflow"

    def _created(self, about: About) -> str:
        """A new run with the config as its parameters, which MLflow lets nobody change later."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run = self._client.create_run(
            experiment, run_name=about.name, tags={"workdir": str(about.workdir)}
        )
        parameters = [
            self._entities.Param(name, str(value)[:_LETTERS]) for name, value in _flat(about.config)
        ]
        for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            some = parameters[first : first + _PARAMETERS_AT_ONCE]
            self._client.log_batch(run.info.run_id, params=some)
        return run.info.run_id

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {f"{group}/step": step, **{f"{group}/{n}": v for n, v in values.items()}}
        metrics = [self._entities.Metric(n, float(v), now, step) for n, v in named.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def write_picture(self, step: int, name: str, png: bytes) -> None:
        image = importlib.import_module("PIL.Image").open(io.BytesIO(png))
        self._client.log_image(self._id, image, key=name, step=step, synchronous=True)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
