"""Peaks of devices: from data sheets by their kind, and measured."""

import dataclasses
import json
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from albert.models.encoder import Albert
from albert.train import config as config_module
from albert.train import hardware
from albert.train.config import check
from albert.train.hardware import data_sheet_peak, peak_flops
from albert.train.loop import train
from models import TINY

# As jax prints kinds of devices. TPUs of the first generations are counted by cores, half a chip.
KINDS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-PCIE-32GB": 112e12,
    "Tesla T4": 65e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA B200": 2250e12,
    # Near to known ones, and others: no figure is better than a wrong one.
    "NVIDIA A10G": None,
    "NVIDIA A1000": None,
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
    "NVIDIA L400": None,
    "NVIDIA H100 80GB HBM2e": None,
    "NVIDIA GeForce RTX 4090": None,
    "TPU v8": None,
    "cpu": None,
}


@pytest.mark.parametrize(("kind", "peak"), KINDS.items())
def test_peaks_are_those_of_the_data_sheets(kind, peak):
    assert data_sheet_peak(kind) == peak


def test_a_kind_without_a_data_sheet_is_measured_quickly_and_once(monkeypatch):
    hardware._measured.cache_clear()
    begin = time.monotonic()
    peak, origin = peak_flops("float32")
    assert time.monotonic() - begin < 5  # one second on a machine that does nothing else
    assert 1e8 < peak * jax.local_device_count() < 1e14
    assert origin.startswith("measured: ")
    assert origin.endswith("products in float32 on cpu")
    assert peak_flops("float32") == (peak, origin)
    kinds = [type("Device", (), {"device_kind": "NVIDIA H100 PCIe"})]
    monkeypatch.setattr(jax, "local_devices", lambda: kinds)
    assert peak_flops("float32") == (756e12, "data sheet of NVIDIA H100 PCIe")


def test_products_grow_until_their_rate_does_not_rise(monkeypatch):
    """On a made-up accelerator that reaches 100 TFLOP/s from 4096 on, and half of that before."""
    hardware._measured.cache_clear()
    clock, running = [0.0], []

    class Square:
        def __init__(self, size):
            self.size = size

        def block_until_ready(self):
            return self

    def product(x):
        rate = 1e14 * min(1.0, (x.size / 4096) ** 0.5)
        running.append(2 * x.size**3 / rate)
        return x

    def wait(results):
        clock[0] += sum(running[-len(results) :])

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "jit", lambda f: product)
    monkeypatch.setattr(jax, "block_until_ready", wait)
    monkeypatch.setattr(hardware.jnp, "full", lambda shape, value, dtype: Square(shape[0]))
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: clock[0])
    peak, origin = hardware._measured("bfloat16")
    hardware._measured.cache_clear()
    assert peak == pytest.approx(1e14)
    assert "4096 x 4096 products in bfloat16" in origin or "8192" in origin


@pytest.mark.parametrize(
    ("rates", "dtype"),
    [
        ({"float32": 300e9, "bfloat16": 1500e9}, "bfloat16"),
        ({"float32": 300e9, "bfloat16": 310e9}, "float32"),  # not worth fewer bits
        ({"float32": 300e9, "bfloat16": 100e9}, "float32"),
    ],
)
def test_the_dtype_of_a_cpu_is_what_its_products_are_fastest_in(monkeypatch, rates, dtype):
    monkeypatch.setattr(hardware, "_rate_on_cpu", rates.get)
    chosen, why = hardware.fastest_dtype()
    assert chosen == dtype
    assert f"{rates['bfloat16'] / 1e9:,.0f} GFLOP/s in bfloat16" in why


def test_rates_of_products_are_those_of_a_machine():
    for dtype in ("float32", "bfloat16"):
        assert 1e8 < hardware._rate_on_cpu(dtype) < 1e14


@pytest.mark.parametrize(
    ("platform", "capability", "dtype"),
    [("tpu", None, "bfloat16"), ("gpu", "9.0", "bfloat16"), ("gpu", "7.5", "float32")],
)
def test_the_dtype_of_accelerators(monkeypatch, platform, capability, dtype):
    device = SimpleNamespace(platform=platform, device_kind="card", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert hardware.fastest_dtype()[0] == dtype


@pytest.mark.slow
def test_a_run_tells_what_was_chosen_and_keeps_its_dtype(tiny, monkeypatch, tmp_path, capsys):
    tiny.model.dtype = "auto"
    tiny.train.num_steps = tiny.train.checkpoint_every = 4
    monkeypatch.setattr(config_module, "fastest_dtype", lambda: ("bfloat16", "it is said here"))
    train(check(tiny), tmp_path)
    told = capsys.readouterr().out
    assert "model.dtype: bfloat16, since it is said here." in told
    assert "Attention: xla, since there is no fused kernel for cpu." in told
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["config"]["model"]["dtype"] == "bfloat16"
    monkeypatch.setattr(config_module, "fastest_dtype", lambda: pytest.fail("chosen twice"))
    tiny.train.num_steps = 8
    assert train(check(tiny), tmp_path).step == 8


def test_a_model_of_no_dtype_is_not_built():
    ids = jnp.zeros((1, 4), jnp.int32)
    model = Albert(dataclasses.replace(TINY, dtype="auto"))
    with pytest.raises(ValueError, match="which a training run replaces at its start; name one of"):
        model.init({"params": jax.random.key(0)}, ids, ids, ids)


def test_deterministic_steps_are_the_same_steps_on_a_cpu(tiny, run, tmp_path):
    tiny.train.deterministic = True
    train(check(tiny), tmp_path)
    ours, theirs = (
        [json.loads(line).get("loss") for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (tmp_path, run)
    )
    assert ours == theirs
