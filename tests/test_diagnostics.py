"""What each layer does, against the same numbers by a second route."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert.checkpoints.store import Checkpoints
from albert.data.loader import heldout_batch
from albert.diagnostics import FIGURES, layer_figures
from albert.inference import Pretrained
from albert.interop import formats
from albert.train.evaluate import Options, open_run
from steps import loss_and_metrics, pretraining_of

ROOT = Path(__file__).resolve().parent.parent
ROWS = 12


@pytest.fixture
def seen(run):
    """Weights and rows of the finished run, and what is said of its layers."""
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        config, task = open_run(run, checkpoints.info(8), Options())
    examples = task.evaluations[0].rows
    weights = formats.read(run)
    batch = heldout_batch(examples, ROWS, range(ROWS), 0, ROWS)
    # Two batches, the second half filling.
    return weights, batch, layer_figures(weights, config, examples, ROWS, 8)


def test_distances_and_entropies_by_numpy(seen):
    weights, batch, found = seen
    output = Pretrained(weights)(
        batch["input_ids"],
        batch["attention_mask"],
        batch["token_type_ids"],
        output_hidden_states=True,
    )
    states = np.asarray(output.hidden_states, np.float64)
    real = batch["attention_mask"].astype(bool)
    layer = "encoder/group_0/layer_0/attention"
    for depth in range(3):
        x, y = states[depth][real], states[depth + 1][real]
        np.testing.assert_allclose(found["l2"][depth], np.linalg.norm(x - y, axis=1).mean(), 1e-4)
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        np.testing.assert_allclose(found["cosine"][depth], cosine.mean(), rtol=1e-4)
        q, k = (
            np.einsum("BLH,HAD->BLAD", states[depth], weights.params[f"{layer}/{name}/kernel"])
            + weights.params[f"{layer}/{name}/bias"]
            for name in ("query", "key")
        )
        scores = np.einsum("BLAD,BMAD->BALM", q, k) / np.sqrt(q.shape[-1])
        scores = np.where(real[:, None, None, :], scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
        of_heads = [entropy[:, a][real].mean() for a in range(4)]
        np.testing.assert_allclose(found["entropy_of_heads"][depth], of_heads, rtol=1e-4)
        np.testing.assert_allclose(found["entropy"][depth], np.mean(of_heads), rtol=1e-4)


@pytest.mark.slow
def test_the_layers_gradients_add_up_to_that_of_the_shared_weights(seen):
    weights, batch, found = seen
    task = pretraining_of(Pretrained(weights).config)

    def loss(params):
        return loss_and_metrics(task, params, batch)[0]

    params = jax.tree.map(jnp.asarray, weights.tree)
    shared = jax.tree.leaves(jax.grad(loss)(params)["encoder"]["layers"])
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in shared))
    parts = np.array(found["gradient_norm"])
    np.testing.assert_allclose(found["gradient_agreement"] * parts.sum(), norm, rtol=1e-4)
    np.testing.assert_allclose(found["gradient_share"], parts / parts.sum(), rtol=1e-6)
    assert 0 < found["gradient_agreement"] <= 1
    assert (parts > 0).all()


@pytest.mark.slow
def test_eval_writes_a_table_and_a_plot(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    call = [sys.executable, "eval.py", f"--workdir={tmp_path / 'run'}", "--layers", "--rows=8"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    written = json.loads((tmp_path / "run" / "layers_8.json").read_text())
    assert written["rows"] == 8
    for name in FIGURES:
        assert len(written[name]) == 3
        assert f"{written[name][2]:.4g}" in done.stdout
    assert (tmp_path / "run" / "layers_8.png").read_bytes()[:4] == b"\x89PNG"
    wrong = subprocess.run(
        [sys.executable, "eval.py", "--model=x", "--layers"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2
    assert "leave --workdir, --step, --program and --layers out" in wrong.stderr
