"""What each layer does: how far it moves its input, where it looks, its share of the gradient.

Sources: L2 distance and cosine between a layer's input and output are those of Lan et al. 2019,
Figure 1. The gradient of a shared weight is the sum of what every depth contributes; the parts are
the gradient of the same function with its layers written out.
"""

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from albert.checkpoints.store import Checkpoints
from albert.data.loader import Rows, heldout_batch
from albert.interop import formats
from albert.interop.reshare import reshare
from albert.interop.weights import Weights
from albert.runtime.fields import ConfigError
from albert.runtime.paths import replace_text
from albert.tasks.pretraining import Pretraining, apply_model
from albert.train.config import Config
from albert.train.evaluate import Options, chosen_steps, open_run
from albert.train.writers.tensorboard import write_scalars

_ROWS = 256  # enough for means over tokens; the gradient of all held-out rows takes long
# Per layer, in the order of the plot and the table.
FIGURES = {
    "l2": "L2 distance of input and output",
    "cosine": "cosine of input and output",
    "entropy": "attention entropy, nats",
    "gradient_share": "share of the gradient's norm",
}


def diagnose_run(workdir: Path, step: str | None, text: str | None, rows: int | None) -> None:
    """Prints what each layer of a run's checkpoints does, and writes `layers_STEP.json`, a plot
    `layers_STEP.png` and TensorBoard scalars into its workdir.

    Args:
      workdir: folder of the run.
      step: a number, "latest", "best" or "all"; None: the newest.
      text: a source to look at instead of the run's own held-out text.
      rows: at most so many held-out rows instead of 256.

    Raises:
      CheckpointError: there is no such run or checkpoint.
      ConfigError, SourceError, VocabularyError: its text or vocabulary cannot be used any more.
    """
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        steps = chosen_steps(checkpoints, step)
        options = Options(text=text)
        config, task = open_run(workdir, checkpoints.info(steps[-1]), options)
    if not isinstance(task, Pretraining):
        raise ConfigError(
            [f"{workdir} is a run of the task {config.task}; --layers is of pretraining"]
        )
    examples = task.evaluations[0].rows
    count = min(rows or _ROWS, examples.rows_per_epoch)
    for number in steps:
        print(f"Looking at the layers at step {number}, over {count} rows.", flush=True)
        weights = formats.read(workdir / "checkpoints" / str(number))
        found = layer_figures(
            weights, config, examples, count, min(count, config.train.eval_batch_size)
        )
        path = workdir / f"layers_{number}{options.suffix}.json"
        plot(path.with_suffix(".png"), f"{workdir.name}, step {number}", found)
        scalars = {
            f"{name}/{depth + 1:02}": value
            for name in FIGURES
            for depth, value in enumerate(found[name])
        }
        write_scalars(
            workdir / "tensorboard" / f"layers{options.suffix}", number, "layers", scalars
        )
        # In one go and last: a sweep takes it for the sign that all is done.
        replace_text(path, json.dumps({"step": number, "rows": count, **found}, indent=1) + "\n")
        print(format_table(found))
        print(f"Written to {path} and {path.with_suffix('.png')}\n", flush=True)


def layer_figures(
    weights: Weights, config: Config, examples: Rows, rows: int, batch_size: int
) -> dict:
    """Figures of every layer over the first held-out rows, dropout off.

    Args:
      weights: the model, with both heads.
      config: of its run.
      examples: the held-out rows.
      rows: how many of them.
      batch_size: rows computed at once.

    Returns:
      Lists with one number for each layer, from the first: "l2" and "cosine" between input and
      output, means over tokens; "entropy" of the attention in nats, the mean over tokens and heads;
      "gradient_norm" of the pretraining loss by the layer's weights as if they were its own,
      "gradient_share", that over the sum of all layers; "entropy_of_heads", [layers][heads]. And
      one number, "gradient_agreement": the norm of the layers' gradients summed up over the sum of
      their norms, 1 where all layers pull shared weights the same way.
    """
    plain = dataclasses.replace(weights.config, sharing="none", per_layer_norm=False, lora_rank=0)
    plain = dataclasses.replace(
        plain, dtype="float32", param_dtype="float32", remat="full", attention="xla"
    )
    written_out = reshare(weights, plain)
    task = Pretraining(dataclasses.replace(config, model=plain))
    params = jax.tree.map(jnp.asarray, written_out.tree)
    batches = [
        heldout_batch(examples, batch_size, range(batch_size), index, rows)
        for index in range(-(-rows // batch_size))
    ]
    denominators = jax.tree.map(lambda *x: sum(x), *map(task.denominators, batches))

    @jax.jit
    def sums(params, batch):
        output = apply_model(
            task.model, params, batch, output_hidden_states=True, output_attention_entropy=True
        )
        real = batch["attention_mask"].astype(jnp.float32)
        assert output.hidden_states is not None
        before, after = output.hidden_states[:-1], output.hidden_states[1:]
        norms = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
        cosine = (before * after).sum(-1) / norms
        return {
            "l2": (jnp.linalg.norm(after - before, axis=-1) * real).sum((1, 2)),
            "cosine": (cosine * real).sum((1, 2)),
            "entropy_of_heads": jnp.einsum("NBAL,BL->NA", output.attention_entropy, real),
            "tokens": real.sum(),
        }

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            return task.loss(task.sums(params, batch, None), denominators)

        return jax.grad(loss)(params)["encoder"]["layers"]

    total = jax.tree.map(lambda *x: sum(x), *[sums(params, batch) for batch in batches])
    grads = None
    for batch in batches:
        more = gradient(params, batch)
        grads = more if grads is None else jax.tree.map(jnp.add, grads, more)
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(grads)]
    norms = np.sqrt(sum((leaf**2).reshape(len(leaf), -1).sum(1) for leaf in leaves))
    together = np.sqrt(sum((leaf.sum(0) ** 2).sum() for leaf in leaves))
    heads = np.asarray(total["entropy_of_heads"] / total["tokens"], np.float64)
    return {
        "l2": np.asarray(total["l2"] / total["tokens"], np.float64).tolist(),
        "cosine": np.asarray(total["cosine"] / total["tokens"], np.float64).tolist(),
        "entropy": heads.mean(1).tolist(),
        "entropy_of_heads": heads.tolist(),
        "gradient_norm": norms.tolist(),
        "gradient_share": (norms / max(norms.sum(), 1e-30)).tolist(),
        "gradient_agreement": float(together / max(norms.sum(), 1e-30)),
    }


def format_table(found: dict) -> str:
    """One line for each layer."""
    names = list(FIGURES)
    lines = ["Layer  " + "  ".join(f"{name:>14}" for name in names)]
    for depth in range(len(found["l2"])):
        values = "  ".join(f"{found[name][depth]:>14.4g}" for name in names)
        lines.append(f"{depth + 1:>5}  {values}")
    lines.append(
        f"The norm of the gradients' sum is {found['gradient_agreement']:.2f} of the sum of "
        "their norms (1: all layers pull the same way)."
    )
    return "\n".join(lines)


def plot(path: Path, title: str, found: dict) -> None:
    """Four panels over the depth, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    depth = np.arange(1, len(found["l2"]) + 1)
    for axis, (name, label) in zip(axes.flat, FIGURES.items(), strict=True):
        if name == "entropy":
            axis.plot(depth, found["entropy_of_heads"], color="0.8", linewidth=1)
        axis.plot(depth, found[name], marker="o", markersize=4)
        axis.set_xlabel("layer")
        axis.set_title(label, fontsize=10)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    path.write_bytes(picture.getvalue())
    pyplot.close(figure)
