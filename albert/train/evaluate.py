"""Held-out figures: losses and accuracies, by span and by what was shown, and filled-in masks."""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from functools import cached_property, reduce
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from albert.checkpoints.store import CheckpointError, Checkpoints
from albert.data.loader import Batch, heldout_batch
from albert.data.pretraining.examples import Examples
from albert.data.pretraining.prepare import (
    found_corpora,
    open_tokenizer,
    prepare_valid,
    warn_of_overlap,
)
from albert.data.tokenizer import Tokenizer
from albert.interop import formats
from albert.interop.weights import stacked
from albert.interop.workdir import is_run
from albert.models.config import AlbertConfig
from albert.models.encoder import Albert, abstract_params
from albert.runtime.fields import ConfigError
from albert.runtime.paths import place, replace_text
from albert.train.config import Config, from_json
from albert.train.log_files import write_scalars
from albert.train.sharding import (
    ShardingConfig,
    batch_sharding,
    local_rows,
    make_mesh,
    placed,
    put_batch,
    replicated,
)
from albert.train.step import MAX_SPAN, SHOWN, make_eval_step, make_guess_step


class Evaluator:
    """Evaluates parameters on the same held-out rows every time."""

    def __init__(
        self,
        model: Albert,
        mesh: Mesh,
        sharding: ShardingConfig,
        examples: Examples,
        max_rows: int,
        batch_size: int,
    ):
        self._examples = examples
        self._rows = min(max_rows, examples.rows_per_epoch)
        self._batch_size = batch_size
        self._sharding = batch_sharding(mesh, sharding)
        self._eval_step = jax.jit(make_eval_step(model), out_shardings=replicated(mesh))
        self._guess_step = jax.jit(make_guess_step(model), out_shardings=replicated(mesh))

    @cached_property
    def _batches(self) -> list[Batch]:
        rows = local_rows(self._sharding, self._batch_size)
        count = math.ceil(self._rows / self._batch_size)
        return [
            heldout_batch(self._examples, self._batch_size, rows, index, self._rows)
            for index in range(count)
        ]

    def figures(self, params) -> dict[str, float]:
        """Figures over all held-out rows; see `figures`."""
        sums = [self._eval_step(params, put_batch(b, self._sharding)) for b in self._batches]
        total = reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)
        return figures({name: np.asarray(value, np.float64) for name, value in total.items()})

    def filled_masks(self, params, count: int) -> list[str]:
        """Masked places of the first rows in words; see `filled_masks`."""
        whole = heldout_batch(
            self._examples, self._batch_size, range(self._batch_size), 0, self._rows
        )
        first = put_batch(self._batches[0], self._sharding)
        guesses = np.asarray(self._guess_step(params, first))
        return filled_masks(self._examples.tokenizer, whole, guesses, count)


def evaluate_run(
    workdir: Path,
    step: str,
    text: str | None,
    rows: int | None,
    num_examples: int,
    objective: str | None = None,
) -> None:
    """Evaluates checkpoints of a run, prints the figures and writes them into its workdir.

    Args:
      workdir: folder of the run.
      step: a number, "latest" or "all".
      text: a source to evaluate on instead of the run's own held-out text.
      rows: at most so many held-out rows instead of the run's own number.
      num_examples: filled-in masks to show.
      objective: make rows for this `data.sentence_objective` rather than the run's own.

    Raises:
      CheckpointError: there is no such run or checkpoint.
      ConfigError, SourceError, VocabularyError: its text or vocabulary cannot be used any more.
    """
    checkpoints = Checkpoints(workdir / "checkpoints")
    steps = chosen_steps(checkpoints, step)
    config, examples = held_out(workdir, checkpoints.info(steps[-1]), text, objective)
    suffix = "_" + re.sub("[^0-9A-Za-z]+", "-", text).strip("-") if text else ""
    suffix += f"_{objective}" if objective else ""
    with _on_these_devices(config, config.model, examples, rows) as (evaluator, like):
        for number in steps:
            params = checkpoints.restore_params(number, like)
            result = evaluator.figures(params)
            lines = evaluator.filled_masks(params, num_examples)
            name = f"eval_{number}{suffix}"
            write_report(workdir / f"{name}.json", number, result, lines)
            write_scalars(workdir / "tensorboard" / f"eval{suffix}", number, "eval", result)
            _print(f"at step {number}", result, lines)
            print(f"Written to {workdir / name}.json\n", flush=True)
    checkpoints.close()


def held_out(
    workdir: Path, info: dict, text: str | None, objective: str | None = None
) -> tuple[Config, Examples]:
    """The config of a run, from a checkpoint's description, and the rows to evaluate it on.

    Args:
      workdir: folder of the run.
      info: what `Checkpoints.info` says.
      text: a source to evaluate on instead of the run's own held-out text.
      objective: the `data.sentence_objective` of the rows instead of the run's own.

    Raises:
      CheckpointError: it is a model and not a run.
      ConfigError, SourceError, VocabularyError: its text or vocabulary cannot be used any more.
    """
    if not is_run(info):
        raise CheckpointError(
            f"{workdir} holds a model and not a run; evaluate it with --model={workdir} --text=..."
        )
    config = from_json(info["config"])
    # The run's own copy of its vocabulary, wherever the original has gone.
    data = dataclasses.replace(config.data, tokenizer=str(workdir / "tokenizer.model"))
    if text is not None:
        data = dataclasses.replace(data, valid_sources=(text,))
    if objective is not None:
        data = dataclasses.replace(data, sentence_objective=objective)
    tokenizer = open_tokenizer(place(data.tokenizer), data, config.model.vocab_size)
    examples = prepare_valid(data, tokenizer)
    warn_of_overlap(
        found_corpora(data, info["data"]["train"]) if data.valid_sources else [],
        [plan.corpus for plan in examples.plans],
    )
    return config, examples


def evaluate_model(
    path: Path, config: Config, text: str | None, rows: int | None, num_examples: int
) -> None:
    """Evaluates any model that `albert.load` takes and prints the figures; writes nothing.

    Args:
      path: the model.
      config: says how text becomes rows, and how many at once; its model section is not used.
      text: the source to evaluate on; None takes the config's held-out text.
      rows: at most so many rows instead of the config's `train.eval_rows`.
      num_examples: filled-in masks to show.

    Raises:
      CheckpointError: there is no such model, or it has no MLM head.
      ConfigError, SourceError, VocabularyError: there is no vocabulary or text, or it does not fit.
    """
    named = place(config.data.tokenizer) if config.data.tokenizer else None
    weights = formats.read(path.expanduser(), vocabulary=named)
    if "mlm_head" in weights.missing:
        raise CheckpointError(f"{path} has no MLM head, so it predicts nothing to be evaluated.")
    data = dataclasses.replace(config.data, valid_sources=(text,) if text else ())
    problems = []
    if weights.tokenizer is None:
        problems.append(
            f"there is no vocabulary beside {path}; name it with --config.data.tokenizer"
        )
    if not text and not config.data.valid_sources:
        problems.append("there is no text to evaluate on; name it with --text")
    if data.seq_length > weights.config.max_position_embeddings:
        problems.append(
            f"data.seq_length is {data.seq_length} and {path} has "
            f"{weights.config.max_position_embeddings} positions; set "
            f"--config.data.seq_length={weights.config.max_position_embeddings}"
        )
    if problems or weights.tokenizer is None:
        raise ConfigError(problems)
    data = data if text else config.data
    examples = prepare_valid(data, weights.tokenizer)
    with _on_these_devices(config, weights.config, examples, rows) as (evaluator, like):
        params = stacked(weights.config, weights.params)
        flat = {
            name: jax.device_put(params.get(name, np.zeros(leaf.shape)), leaf.sharding)
            for name, leaf in flatten_dict(like, sep="/").items()
        }
        params = unflatten_dict(flat, sep="/")
        result = evaluator.figures(params)
        lines = evaluator.filled_masks(params, num_examples)
    if {"sop_head", "pooler"} & set(weights.missing):
        # Figures of a head that is not there would be made up.
        result = {k: v for k, v in result.items() if not k.startswith("sop_") and k != "loss"}
    _print(f"by {path}", result, lines)


@contextlib.contextmanager
def _on_these_devices(
    config: Config, model_config: AlbertConfig, examples: Examples, rows: int | None
) -> Iterator[tuple[Evaluator, dict]]:
    """Yields an evaluator over the devices that are here, whatever trained the model, and its
    parameters as abstract arrays."""
    model = Albert(model_config)
    sharding = dataclasses.replace(config.sharding, data=-1, fsdp=1, tensor=1)
    mesh = make_mesh(sharding)
    batch_size = -(-config.train.eval_batch_size // jax.device_count()) * jax.device_count()
    like = placed(abstract_params(model), mesh, sharding)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.rules):
        yield (
            Evaluator(model, mesh, sharding, examples, rows or config.train.eval_rows, batch_size),
            like,
        )


def _print(of: str, result: dict[str, float], lines: list[str]) -> None:
    print(format_table(of, result))
    if lines:
        print("Masks filled in, [right] or [guess, was: truth]:")
        print("\n".join(f"  {line}" for line in lines), flush=True)


def chosen_steps(checkpoints: Checkpoints, step: str) -> list[int]:
    """The checkpoints that "latest", "all" or a number name; raises CheckpointError."""
    found = checkpoints.steps()
    if not found:
        raise CheckpointError(f"{checkpoints.folder} holds no finished checkpoint yet.")
    if step == "latest":
        return found[-1:]
    if step == "all":
        return found
    if not step.isdecimal() or int(step) not in found:
        raise CheckpointError(
            f"{checkpoints.folder} has no checkpoint of step {step}; it has "
            f"{', '.join(map(str, found))}. Give one of them, latest or all."
        )
    return [int(step)]


def figures(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Means from the sums of `make_eval_step`; a group without a target is left out.

    `unigram_entropy`, in nats, is that of the held-out text's own pieces: the lowest MLM loss
    that is possible without looking at the context. All pieces are counted, not just the masked
    ones, since the entropy of few samples comes out too low.
    """
    result = {}
    for task in ("mlm", "sop"):
        nll, hit, count = sums[task]
        if task == "sop" and not count:
            continue  # data.sentence_objective is "none"
        result[f"{task}_loss"] = nll / max(count, 1)
        result[f"{task}_accuracy"] = hit / max(count, 1)
        result[f"{task}_targets"] = count
    result["loss"] = result["mlm_loss"] + result.get("sop_loss", 0.0)
    result["mlm_perplexity"] = math.exp(min(result["mlm_loss"], 700.0))
    share = sums["words"][sums["words"] > 0] / max(sums["words"].sum(), 1)
    result["unigram_entropy"] = -(share * np.log(share)).sum()
    groups = [f"span_{n}" for n in range(1, MAX_SPAN + 1)] + [f"shown_{name}" for name in SHOWN]
    for group in groups:
        nll, hit, count = sums[f"mlm_{group}"]
        if count:
            result[f"mlm_loss_{group}"] = nll / count
            result[f"mlm_accuracy_{group}"] = hit / count
    return {name: float(value) for name, value in result.items()}


def format_table(of: str, result: dict[str, float]) -> str:
    """The figures as a table that also says what chance would give; `of`: at which step."""
    sop_rows = []
    if "sop_loss" in result:
        noise = 0.5 / math.sqrt(max(result["sop_targets"], 1))
        sop_rows = [
            ("SOP loss (nats)", f"{result['sop_loss']:.3f}", f"chance {math.log(2):.3f}"),
            (
                "SOP accuracy",
                f"{100 * result['sop_accuracy']:.1f} %",
                f"chance 50.0 +- {100 * noise:.1f} over {result['sop_targets']:.0f} examples",
            ),
        ]
    gap = result["unigram_entropy"] - result["mlm_loss"]
    rows = [
        (
            "MLM loss (nats)",
            f"{result['mlm_loss']:.3f}",
            f"unigram entropy {result['unigram_entropy']:.3f}: "
            + (f"{gap:.3f} below it" if gap > 0 else "not below it yet"),
        ),
        ("MLM perplexity", f"{result['mlm_perplexity']:.1f}", ""),
        (
            "MLM accuracy",
            f"{100 * result['mlm_accuracy']:.1f} %",
            f"{result['mlm_targets']:.0f} masked tokens",
        ),
        *sop_rows,
    ]
    names = {f"span_{n}": f"runs of {n} masked pieces" for n in range(1, MAX_SPAN)}
    names[f"span_{MAX_SPAN}"] = f"runs of {MAX_SPAN} or more"
    names |= {
        "shown_mask": "shown [MASK]",
        "shown_unchanged": "shown unchanged",
        "shown_random": "shown another piece",
    }
    rows += [
        (
            f"  {text}",
            f"{result[f'mlm_loss_{key}']:.3f}",
            f"accuracy {100 * result[f'mlm_accuracy_{key}']:.1f} %",
        )
        for key, text in names.items()
        if f"mlm_loss_{key}" in result
    ]
    lines = [f"Held-out text {of}"]
    lines += [f"  {name:<26} {value:>9}   {note}".rstrip() for name, value, note in rows]
    return "\n".join(lines)


def filled_masks(
    tokenizer: Tokenizer, batch: dict[str, np.ndarray], guesses: np.ndarray, count: int
) -> list[str]:
    """A masked place of each of the first rows in words, with what the model puts there.

    [word] is a right guess, [guess, was: word] a wrong one. guesses: int [B, P].
    """
    lines: list[str] = []
    for row in range(len(guesses)):
        if len(lines) == count:
            break
        at = {
            int(position): (int(guess), int(label))
            for position, guess, label, weight in zip(
                batch["mlm_positions"][row],
                guesses[row],
                batch["mlm_labels"][row],
                batch["mlm_weights"][row],
                strict=True,
            )
            if weight
        }
        if not at:
            continue  # a row whose every word is longer than its budget, or padding
        middle = sorted(at)[len(at) // 2]
        # Its own example only: the tokens of the others in a packed row mean nothing to it.
        numbers = batch.get("segment_ids", batch["attention_mask"])[row]
        own = np.flatnonzero(numbers == numbers[middle])
        words = []
        for position in range(max(own[0] + 1, middle - 14), min(own[-1], middle + 15)):
            if position not in at:
                words.append(tokenizer.pieces([batch["input_ids"][row][position]])[0])
                continue
            guess, label = (tokenizer.decode([i]) or "_" for i in at[position])
            right = at[position][0] == at[position][1]
            words.append(f"\u2581[{guess}]" if right else f"\u2581[{guess}, was: {label}]")
        lines.append("... " + "".join(words).replace("\u2581", " ").strip() + " ...")
    return lines


def write_report(path: Path, step: int, result: dict[str, float], examples: list[str]) -> None:
    """The figures and examples of one evaluation as a JSON file."""
    found = {"step": step, **result, "examples": examples}
    # In one go: its being there says that a run is finished.
    replace_text(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
