"""Engines that start runs on clusters: of each a file, a folder below launch/, and a line here.

`base.Engine` says what such a file holds.
"""

from tools.launchers import kubernetes, skypilot, slurm, tpu_vm
from tools.launchers.base import Engine

TARGETS: dict[str, Engine] = {
    "slurm": slurm,
    "kubernetes": kubernetes,
    "skypilot": skypilot,
    "tpu_vm": tpu_vm,
}
