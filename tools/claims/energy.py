"""Energy, measured where this machine has a meter."""

import glob
import importlib.util
import os
import time
from collections.abc import Callable

INSTALL = "pip install -r requirements-report.txt"
_SECONDS = 30.0


def meters() -> list[str]:
    """Meters that can be read here: Intel's and AMD's RAPL counters, NVIDIA's GPUs."""
    found = []
    counters = glob.glob("/sys/class/powercap/intel-rapl*/energy_uj")
    if any(os.access(path, os.R_OK) for path in counters):
        found.append("RAPL")
    if os.path.exists("/dev/nvidia0"):
        found.append("NVIDIA")
    return found


def can_measure() -> bool:
    """Whether there is a meter and codecarbon, which reads it."""
    return bool(meters()) and importlib.util.find_spec("codecarbon") is not None


def kwh_per_run(run: Callable[[], object], seconds: float = _SECONDS) -> float:
    """kWh of one call, over as many calls as take about `seconds`, by codecarbon.

    All devices of the machine count, at rest or not: let nothing else run.
    """
    import jax
    from codecarbon import OfflineEmissionsTracker

    jax.block_until_ready(run())
    tracker = OfflineEmissionsTracker(
        # Any country would do: only its energy is used, and CO2 is computed from --grams.
        country_iso_code="USA",
        measure_power_secs=1,
        save_to_file=False,
        log_level="error",
        allow_multiple_runs=True,
    )
    tracker.start()
    begin, times = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        jax.block_until_ready(run())
        times += 1
    tracker.stop()
    return tracker.final_emissions_data.energy_consumed / times
