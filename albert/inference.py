"""A loaded model, ready to be called: what `albert.load` returns."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.checkpoints.store import CheckpointError
from albert.data.tokenizer import MASK, PAD, Tokenizer
from albert.interop import formats
from albert.interop.weights import HEADS, Weights, parameter_shapes, part_of, unstacked
from albert.models.config import DTYPES, AlbertConfig
from albert.models.encoder import Albert, AlbertOutput
from albert.runtime.paths import place

POOLING = ("mean", "pooled", "cls")


class Guess(NamedTuple):
    """What could stand at a [MASK]."""

    text: str
    probability: float
    id: int


class Pretrained:
    """An encoder with its heads, its parameters and its vocabulary.

    Attributes:
      config: the model's `AlbertConfig`.
      params: its parameters, a nested dict of float32 arrays. Heads that the checkpoint lacks are
        not in it.
      tokenizer: its vocabulary; None when there was none beside the checkpoint.
      step: steps taken, where the checkpoint says so.
      missing: the heads that the checkpoint lacks, of "pooler", "mlm_head" and "sop_head".
      left_over: names in the checkpoint that are no part of the model.
    """

    def __init__(self, weights: Weights, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        self.config: AlbertConfig = dataclasses.replace(
            weights.config, dtype=dtype, param_dtype="float32", remat="none"
        )
        self.params = jax.tree.map(jnp.asarray, weights.tree)
        self.tokenizer: Tokenizer | None = weights.tokenizer
        self.step = weights.step
        self.missing = weights.missing
        self.left_over = weights.left_over
        # The module computes every head; what a missing one would need is never used.
        self._absent = {
            path: shape
            for path, shape in parameter_shapes(self.config).items()
            if part_of(path) in self.missing
        }

    def __repr__(self):
        sizes = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Pretrained({sizes:,} parameters, {self.tokenizer}, missing {self.missing})"

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None) -> AlbertOutput:
        """Runs the encoder and its heads, without dropout.

        Args:
          input_ids: integers [B, L], each in [0, V).
          attention_mask: [B, L], 1 for a token and 0 for padding; None: all are tokens.
          token_type_ids: integers [B, L], 0 or 1; None: all 0.

        Returns:
          `AlbertOutput` with `last_hidden_state` [B, L, H], `pooled_output` [B, H],
          `hidden_states` [depth + 1, B, L, H] (the encoder's input, then every layer's output),
          `mlm_logits` float32 [B, L, V] and `sop_logits` float32 [B, 2] (in order, swapped).
          What needs a missing head is None.

        Raises:
          ValueError: shapes, types or ids are not as above.
        """
        rows = _checked(self.config, input_ids, attention_mask, token_type_ids)
        return self._forward(self.params, *rows)

    @functools.cached_property
    def _forward(self):
        @jax.jit
        def forward(params, input_ids, attention_mask, token_type_ids):
            output = self._apply(params, input_ids, attention_mask, token_type_ids)
            logits = {
                name: value
                for name, value in output.logits.items()
                if f"{name}_head" not in self.missing
                and (name != "sop" or "pooler" not in self.missing)
            }
            pooled = None if "pooler" in self.missing else output.pooled_output
            return output.replace(logits=logits, pooled_output=pooled)  # type: ignore[attr-defined]

        return forward

    def _apply(self, params, *rows) -> AlbertOutput:
        flat = flatten_dict(params, sep="/")
        flat |= {path: jnp.zeros(shape) for path, shape in self._absent.items()}
        tree = unflatten_dict(flat, sep="/")
        output = Albert(self.config).apply({"params": tree}, *rows, output_hidden_states=True)
        return cast(AlbertOutput, output)

    @functools.cached_property
    def _sentence_vectors(self):
        @functools.partial(jax.jit, static_argnames="pooling")
        def vectors(params, input_ids, attention_mask, token_type_ids, pooling):
            output = self._apply(params, input_ids, attention_mask, token_type_ids)
            if pooling == "pooled":
                assert output.pooled_output is not None
                return output.pooled_output.astype(jnp.float32)
            assert output.last_hidden_state is not None
            hidden = output.last_hidden_state.astype(jnp.float32)
            if pooling == "cls":
                return hidden[:, 0]
            weights = attention_mask[:, :, None].astype(jnp.float32)
            return (hidden * weights).sum(1) / weights.sum(1)

        return vectors

    def tokenize(
        self,
        text: str | Sequence[str],
        pair: str | Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP], as arrays to call the model with.

        Args:
          text: one text, or several, which are padded to the longest.
          pair: as many second segments. [MASK] and the other special pieces mean themselves.
          max_length: longer rows lose pieces at the end of their longer segment.

        Returns:
          int32 `input_ids`, `attention_mask` and `token_type_ids`, each [B, L].

        Raises:
          ValueError: a text is longer than the model's positions and no `max_length` is given,
            or there is no vocabulary.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pairs = [pair] if isinstance(pair, str) else [None] * len(texts) if pair is None else pair
        if not texts or len(texts) != len(pairs):
            raise ValueError(f"There are {len(texts)} texts and {len(pairs)} pairs.")
        tokenizer = self._vocabulary()
        limit = self.config.max_position_embeddings
        if max_length is not None and max_length > limit:
            raise ValueError(f"max_length {max_length} is over the model's {limit} positions.")
        rows = [tokenizer.encode_pair(a, b, max_length) for a, b in zip(texts, pairs, strict=True)]
        lengths = [len(ids) for ids, _ in rows]
        if max(lengths) > limit:
            raise ValueError(
                f"Text {int(np.argmax(lengths))} has {max(lengths)} pieces and the model {limit} "
                f"positions; give max_length={limit} to cut what is longer."
            )
        shape = len(rows), max(lengths)
        arrays = {
            "input_ids": np.full(shape, PAD, np.int32),
            "attention_mask": np.zeros(shape, np.int32),
            "token_type_ids": np.zeros(shape, np.int32),
        }
        for number, (ids, types) in enumerate(rows):
            arrays["input_ids"][number, : len(ids)] = ids
            arrays["attention_mask"][number, : len(ids)] = 1
            arrays["token_type_ids"][number, : len(ids)] = types
        return arrays

    def fill_mask(self, text: str, top: int = 5) -> list[list[Guess]]:
        """The `top` likeliest pieces at every [MASK] of the text, best first.

        Raises ValueError when the text has no [MASK], or the model no vocabulary or MLM head.
        """
        if "mlm_head" in self.missing:
            raise ValueError("This checkpoint has no MLM head, so it cannot fill masks.")
        tokenizer = self._vocabulary()
        rows = self.tokenize(text)
        places = np.flatnonzero(rows["input_ids"][0] == MASK)
        if not len(places):
            raise ValueError(f"There is no [MASK] in {text!r}.")
        output = self(**_padded(rows, self.config.max_position_embeddings))
        assert output.mlm_logits is not None
        logits = output.mlm_logits[0, places]
        probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits), min(top, self.config.vocab_size))
        return [
            [
                Guess(tokenizer.decode([i]) or tokenizer.pieces([i])[0], float(p), int(i))
                for p, i in zip(of_place, chosen, strict=True)
            ]
            for of_place, chosen in zip(np.asarray(probabilities), np.asarray(ids), strict=True)
        ]

    def encode(
        self, texts: Sequence[str], pooling: str = "mean", batch_size: int = 32
    ) -> np.ndarray:
        """Sentence vectors: float32 [number of texts, H].

        Args:
          texts: those longer than the model's positions are cut, with a warning.
          pooling: "mean" of the last hidden states of all pieces, [CLS] and [SEP] among them;
            "cls", that of [CLS]; "pooled", the pooler's output.
          batch_size: texts that are computed at once.

        Raises:
          ValueError: there is no such pooling, no pooler or no vocabulary.
        """
        if isinstance(texts, str):
            raise ValueError("encode takes a list of texts; for one, write encode([text])[0].")
        if pooling not in POOLING:
            raise ValueError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLING)}")
        if pooling == "pooled" and "pooler" in self.missing:
            raise ValueError("This checkpoint has no pooler.")
        tokenizer, limit = self._vocabulary(), self.config.max_position_embeddings
        vectors = np.zeros((len(texts), self.config.hidden_size), np.float32)
        lengths = [len(ids) + 2 for ids in map(tokenizer.encode_special, texts)]
        if long := sum(length > limit for length in lengths):
            warnings.warn(
                f"{long} of {len(texts)} texts are cut to the model's {limit} positions.",
                stacklevel=2,
            )
        # Alike lengths together: less padding.
        order = np.argsort(lengths, kind="stable")
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            rows = self.tokenize([texts[i] for i in chosen], max_length=limit)
            count = 1 << (len(chosen) - 1).bit_length()  # few shapes to compile
            rows = _padded(rows, limit, min(count, batch_size))
            found = self._sentence_vectors(self.params, *rows.values(), pooling=pooling)
            vectors[chosen] = np.asarray(found)[: len(chosen)]
        return vectors

    def save(self, path: str | os.PathLike, format: str = "albert") -> None:
        """Writes the model with its vocabulary as a new folder, whole or not at all.

        An optimiser's moments are not part of a loaded model; `tools/convert.py` takes them along.

        Args:
          path: the folder; must not be there yet.
          format: "albert", as a workdir; "huggingface"; "original", the released program's.

        Raises:
          CheckpointError: the folder is there, or the format cannot hold such a model.
          ValueError: there is no such format, or the parameters are not those of the model.
        """
        whole = {k: np.asarray(v) for k, v in flatten_dict(self.params, sep="/").items()}
        try:
            flat = unstacked(self.config, whole)
        except CheckpointError as error:
            raise ValueError(f"params: {error}") from error
        absent = set(HEADS) - {part_of(name) for name in flat}
        for name, shape in parameter_shapes(self.config).items():
            found = flat[name].shape if name in flat else None
            if found != shape and part_of(name) not in absent:
                raise ValueError(f"params: {name} has shape {found}; the model's is {shape}.")
        weights = Weights(self.config, flat, self.step, tokenizer=self.tokenizer)
        formats.write(weights, place(str(path)), format)

    def _vocabulary(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                "There was no vocabulary beside the checkpoint; load it with "
                "albert.load(PATH, tokenizer=FILE.model)."
            )
        return self.tokenizer


def load(
    path: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    dtype: str = "float32",
) -> Pretrained:
    """The model in `path`; see `albert.load`."""
    vocabulary = None if tokenizer is None else place(str(tokenizer))
    return Pretrained(formats.read(place(str(path)), vocabulary=vocabulary), dtype)


def _checked(config: AlbertConfig, input_ids, attention_mask, token_type_ids):
    """The three arrays, in int32 and of one shape; raises ValueError."""
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"input_ids has shape {ids.shape} and type {ids.dtype}; it must be integers [B, L]."
        )
    rows = {
        "attention_mask": np.ones_like(ids) if attention_mask is None else attention_mask,
        "token_type_ids": np.zeros_like(ids) if token_type_ids is None else token_type_ids,
    }
    rows = {name: np.asarray(value) for name, value in rows.items()}
    for name, value in rows.items():
        if value.shape != ids.shape:
            raise ValueError(f"{name} has shape {value.shape} and input_ids {ids.shape}.")
    for name, value, bound in (
        ("input_ids", ids, config.vocab_size),
        ("token_type_ids", rows["token_type_ids"], config.type_vocab_size),
    ):
        if value.size and (value.min() < 0 or value.max() >= bound):
            wrong = value[(value < 0) | (value >= bound)][0]
            raise ValueError(f"{name} holds {wrong}; the model knows 0 to {bound - 1}.")
    if ids.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"input_ids are {ids.shape[1]} long and the model has "
            f"{config.max_position_embeddings} positions."
        )
    return (
        ids.astype(np.int32),
        rows["attention_mask"].astype(np.int32),
        rows["token_type_ids"].astype(np.int32),
    )


def _padded(rows: dict[str, np.ndarray], limit: int, batch: int | None = None):
    """Rows padded to a multiple of 32 pieces, and to `batch` rows: few shapes to compile."""
    count, length = rows["input_ids"].shape
    to = min(-(-length // 32) * 32, limit)
    more = (batch or count) - count
    # The padding of [PAD] ids is 0, as that of masks and types. A row of padding looks at itself.
    padded = {k: np.pad(v, ((0, more), (0, to - length))) for k, v in rows.items()}
    padded["attention_mask"][count:, 0] = 1
    return padded
