"""What a device could do at most, and how much memory was used."""

import functools
import os
import re
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

# Dense matrix peak in FLOP/s of one device as jax counts them, from the makers' data sheets, for
# bfloat16 (float16 where the device has no bfloat16). Of TPU v2, v3 and 7x, of AMD's MI250X too, a
# jax device is half a chip. A pattern fits a device's whole kind; what fits none is measured.
_PEAKS = (
    (r"TPU v2", 22.5e12),
    (r"TPU v3", 61.5e12),
    (r"TPU v4", 275e12),
    (r"TPU v4 lite", 138e12),
    (r"TPU v5( lite|e|litepod.*)", 197e12),
    (r"TPU v5p?", 459e12),
    (r"TPU v6( lite|e)", 918e12),
    (r"TPU ?v?7x", 1153.5e12),
    (r"(NVIDIA )?Tesla V100-(FHHL|PCIE).*", 112e12),
    (r"(NVIDIA )?Tesla V100-.*", 125e12),
    (r"(NVIDIA )?(Tesla )?T4", 65e12),
    (r"NVIDIA A10", 125e12),
    (r"NVIDIA A30", 165e12),
    (r"NVIDIA A[18]00\b.*", 312e12),
    (r"NVIDIA L4", 121e12),
    (r"NVIDIA L40", 181e12),
    (r"NVIDIA L40S", 362e12),
    (r"NVIDIA H[18]00 PCIe", 756e12),
    (r"NVIDIA H100 NVL", 835e12),
    (r"NVIDIA H[18]00 .*HBM3", 989e12),
    (r"NVIDIA H[18]00", 989e12),
    (r"NVIDIA H200 NVL", 835e12),
    (r"NVIDIA H200", 989e12),
    (r"NVIDIA GH200\b.*", 989e12),
    (r"NVIDIA B200", 2250e12),
    (r"NVIDIA GB200", 2500e12),
    (r"AMD Instinct MI250X?", 191.5e12),
    (r"AMD Instinct MI300X", 1307e12),
)
_LARGEST = 16384  # rows of a product that is measured
_WORTH_IT = 1.3  # so many times as fast must 16-bit products be: the rest stays in float32
_RISES = 1.05  # a larger product is tried for as long as its rate is so many times the last one's


def data_sheet_peak(kind: str) -> float | None:
    """FLOP/s of a device of this kind at best; None for one that is not known, or a part of one."""
    if " MIG " in kind:
        return None
    return next((peak for pattern, peak in _PEAKS if re.fullmatch(pattern, kind)), None)


def peak_flops(dtype) -> tuple[float, str]:
    """FLOP/s of one device at best, and where the number comes from.

    A kind of device whose data sheet is not known is measured with matrix products in `dtype`.
    """
    kind = jax.local_devices()[0].device_kind
    if peak := data_sheet_peak(kind):
        return peak, f"data sheet of {kind}"
    return _measured(jnp.dtype(dtype).name)


@functools.cache
def _measured(dtype: str) -> tuple[float, str]:
    on_cpu = jax.default_backend() == "cpu"
    # Several at once, so that starting a product hides behind the one before. A CPU starts none
    # while it computes, and gets less time: there the figure serves comparisons at most.
    at_once, rounds, seconds = (1, 3, 0.6) if on_cpu else (8, 3, 10.0)
    deadline = time.monotonic() + seconds
    # As the layers multiply: with a result of 16 bits, XLA leaves a CPU's units for them idle.
    result = jnp.float32 if on_cpu else None
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=result))
    size, best, took = 512, (0.0, 0), 0.0
    while size <= _LARGEST and time.monotonic() + 8 * took < deadline:
        x = jnp.full((size, size), 0.01, dtype)
        product(x).block_until_ready()
        begin = time.monotonic()
        rate = 0.0
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready([product(x) for _ in range(at_once)])
            rate = max(rate, at_once * 2 * size**3 / (time.perf_counter() - start))
        took = time.monotonic() - begin
        rises = rate > _RISES * best[0]
        best = max(best, (rate, size))
        if not rises:
            break
        size *= 2
    rate, size = best
    # Simulated devices share the cores that these products had to themselves.
    share = jax.local_device_count() if on_cpu else 1
    kind = jax.local_devices()[0].device_kind
    return rate / share, f"measured: {size} x {size} products in {dtype} on {kind}"


def fastest_dtype() -> tuple[str, str]:
    """The dtype that trains faster here, bfloat16 or float32, and why; of several processes the
    first decides.

    A CPU is measured: one with units for 16 bits is several times as fast in them, and others are
    slower than in float32.
    """
    device = jax.local_devices()[0]
    if device.platform == "tpu":
        return "bfloat16", f"a {device.device_kind} multiplies in it"
    if device.platform != "cpu":
        capability = str(getattr(device, "compute_capability", ""))
        number = capability.partition(".")[0]
        if number.isdigit() and int(number) < 8:
            return "float32", f"a {device.device_kind} has no units for bfloat16"
        return "bfloat16", f"a {device.device_kind} has units for it"
    rates = {dtype: _rate_on_cpu(dtype) for dtype in ("float32", "bfloat16")}
    faster = rates["bfloat16"] > _WORTH_IT * rates["float32"]
    if jax.process_count() > 1:
        faster = bool(multihost_utils.broadcast_one_to_all(np.asarray(faster)))
    told = " and ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    return "bfloat16" if faster else "float32", f"products were measured: {told}"


def _rate_on_cpu(dtype: str) -> float:
    """FLOP/s of products with results in float32, the best of several."""
    size, rounds = 1024, 5
    x = jnp.full((size, size), 0.01, dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def device_memory_bytes() -> float:
    """What programs get of a local device's memory; of a CPU a device's share of the machine's."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()


def peak_memory_bytes() -> int:
    """The most that the first local device's allocator held; of a CPU, which has none, the most
    that this process was resident."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
