"""On what something is measured, and at which commit."""

import os
import platform
import subprocess
import sys
from pathlib import Path


def here() -> str:
    """For a reader, in one line: devices, processor, versions, commit."""
    import jax

    cpu = platform.processor()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return (
        f"{jax.device_count()} x {jax.devices()[0].device_kind} ({os.cpu_count()} cores of {cpu}), "
        f"Python {platform.python_version()}, jax {jax.__version__}, commit {commit or 'unknown'}"
    )
