"""A loaded model, ready to be called: what `albert.load` returns."""

import dataclasses
import functools
import operator
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from albert.answers import (
    ABILITIES,
    Answer,
    Chosen,
    Class,
    Guess,
    Tag,
    answer_of,
    chosen_of,
    class_of,
    guesses_of,
    tags_of,
    words_of,
)
from albert.checkpoints import CheckpointError
from albert.data.labelled.choices import choice_sequences
from albert.data.labelled.sequences import Sequences, make_sequences
from albert.data.labelled.squad import Options, Question, make_windows
from albert.data.labelled.words import word_sequences
from albert.data.padding import bucket
from albert.data.tokenizer import MASK, PAD, UNK, Tokenizer
from albert.interop import formats
from albert.interop.reshare import first_layers
from albert.interop.weights import OPTIONAL_PARTS, Weights, parameter_shapes, part_of, unstacked
from albert.models import exits
from albert.models.config import DTYPES, AlbertConfig
from albert.models.encoder import Albert
from albert.models.heads import HEADS, POOLING, outside_of_paragraph, pool
from albert.runtime.paths import place

# The shortest length that a program is compiled for.
_SHORTEST = 16


class Program(NamedTuple):
    """A program that `warm_up` has compiled."""

    ability: str
    rows: int
    length: int  # positions of a row
    seconds: float  # of compiling it and running it once


@dataclasses.dataclass(frozen=True, repr=False)
class Output:
    """What a call of the model returns, as NumPy arrays; its text says the shapes, and how to ask
    for what is None.

    Attributes:
      last_hidden_state: [B, L, H], in the dtype of activations.
      pooled_output: [B, H]; None where the checkpoint has no pooler.
      sop_logits: float32 [B, 2], in order and swapped; None without that head.
      hidden_states: [depth + 1, B, L, H], the encoder's input, then every layer's output; None
        unless asked for with output_hidden_states=True.
      mlm_logits: float32 [B, L, V], or [B, P, V] at mlm_positions; None without that head, or
        unless asked for with output_mlm_logits=True or mlm_positions.
      classifier_logits: float32 [B, labels]; None unless the model was fine-tuned to classify.
    """

    last_hidden_state: np.ndarray
    pooled_output: np.ndarray | None
    sop_logits: np.ndarray | None
    hidden_states: np.ndarray | None
    mlm_logits: np.ndarray | None
    classifier_logits: np.ndarray | None
    missing: tuple[str, ...] = ()  # heads that the checkpoint lacks

    def __repr__(self):
        asked = {
            "hidden_states": "ask with output_hidden_states=True",
            "mlm_logits": "ask with output_mlm_logits=True or mlm_positions=[...]",
        }
        lines = []
        for name in asked | _NEEDS:
            value = getattr(self, name)
            lost = [head for head in _NEEDS.get(name, ()) if head in self.missing]
            if value is not None:
                lines.append(f"{name}: {value.dtype} {list(value.shape)}")
            elif lost:
                lines.append(f"{name}: None, the checkpoint has no {' and no '.join(lost)}")
            else:
                lines.append(f"{name}: None, {asked[name]}")
        hidden = self.last_hidden_state
        first = f"last_hidden_state: {hidden.dtype} {list(hidden.shape)}"
        return "\n  ".join(["Output(", first, *sorted(lines)]) + "\n)"


# What each output is computed by.
_NEEDS: dict[str, tuple[str, ...]] = {
    "pooled_output": ("pooler",),
    "sop_logits": ("pooler", "sop_head"),
    "mlm_logits": ("mlm_head",),
    "classifier_logits": ("pooler", "classifier_head"),
}


class Pretrained:
    """An encoder with its heads, its parameters and its vocabulary.

    Programs are compiled for few shapes: arrays are padded inside to one of them, and what is
    returned has the shapes that were given. It can be copied and pickled, and carries its
    vocabulary with it.

    Attributes:
      config: the model's `AlbertConfig`.
      params: its parameters, a nested dict of float32 arrays. Heads that the checkpoint lacks are
        not in it.
      tokenizer: its vocabulary; None when there was none beside the checkpoint that can be used.
      step: steps taken, where the checkpoint says so.
      heads: those that it has been trained with, by name, with their fields.
      labels: names of what its classifier tells apart; empty where it has none.
      missing: the heads that the checkpoint lacks, of "pooler", "mlm_head" and "sop_head".
      left_over: names in the checkpoint that are no part of the model.
      vocabulary_note: why there is no vocabulary, or what is particular to it; may be empty.
    """

    def __init__(self, weights: Weights, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        self.config: AlbertConfig = dataclasses.replace(
            weights.config, dtype=dtype, param_dtype="float32", remat="none", attention="auto"
        )
        self.heads = weights.heads
        self.labels = weights.labels
        self.params = jax.tree.map(jnp.asarray, weights.tree)
        self.tokenizer: Tokenizer | None = weights.tokenizer
        self.step = weights.step
        self.missing = weights.missing
        self.left_over = weights.left_over
        self.vocabulary_note = weights.vocabulary_note
        # The module computes every head; what a missing one would need is never used.
        self._absent = {
            path: shape
            for path, shape in parameter_shapes(self.config, self.heads).items()
            if part_of(path) in self.missing
        }

    def __repr__(self):
        sizes = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Pretrained({sizes:,} parameters, {self.tokenizer}, missing {self.missing})"

    def __getstate__(self):
        # Compiled programs belong to this process; they are made again where they are needed.
        return {k: v for k, v in vars(self).items() if k not in _COMPILED}

    def __call__(
        self,
        input_ids,
        attention_mask=None,
        token_type_ids=None,
        *,
        output_hidden_states: bool = False,
        output_mlm_logits: bool = False,
        mlm_positions=None,
    ) -> Output:
        """Runs the encoder and its heads, without dropout.

        Args:
          input_ids: integers [B, L], each in [0, V).
          attention_mask: [B, L], 1 for a token and 0 for padding; None: all are tokens.
          token_type_ids: integers [B, L], 0 or 1; None: all 0.
          output_hidden_states: also return the encoder's input and every layer's output.
          output_mlm_logits: also return the MLM head's logits, at every position: of 32 rows of
            512 pieces and 30,000 in the vocabulary these are 2 GB.
          mlm_positions: integers [B, P], each in [0, L): return them at these positions only.

        Returns:
          `Output`. What was not asked for, or needs a head that is missing, is None. Rows of the
          model that are no piece of its vocabulary have the logit -inf.

        Raises:
          ValueError: shapes, types or ids are not as above.
        """
        rows = _checked(self.config, input_ids, attention_mask, token_type_ids)
        count, length = rows["input_ids"].shape
        padded = _padded(rows, self.config.max_position_embeddings)
        wanted = {"last_hidden_state", "pooled_output", "sop_logits", "classifier_logits"}
        if output_hidden_states:
            wanted.add("hidden_states")
        positions = None
        if mlm_positions is not None:
            mlm_positions = _checked_positions(mlm_positions, count, length)
            positions = _grown(
                mlm_positions, len(padded["input_ids"]), bucket(mlm_positions.shape[1])
            )
        if output_mlm_logits or positions is not None:
            wanted.add("mlm_logits")
        lacking = self._lacking
        wanted -= {name for name, parts in _NEEDS.items() if {*parts} & lacking}
        found = self._forward(
            self.params, padded, positions, wanted=tuple(sorted(wanted)), pieces=self._num_pieces
        )
        if "mlm_logits" in found and positions is not None:
            found["mlm_logits"] = np.asarray(found["mlm_logits"])[:, : mlm_positions.shape[1]]
        # Copies, writable, which do not keep the padding in memory.
        cut = {
            "last_hidden_state": np.s_[:count, :length],
            "hidden_states": np.s_[:, :count, :length],
            "mlm_logits": np.s_[:count, :length] if positions is None else np.s_[:count],
        }
        arrays = {
            name: np.array(np.asarray(value)[cut.get(name, np.s_[:count])])
            for name, value in found.items()
        }
        nothing = dict.fromkeys(field.name for field in dataclasses.fields(Output))
        return Output(**(nothing | arrays | {"missing": tuple(lacking)}))  # type: ignore[arg-type]

    @functools.cached_property
    def _forward(self):
        @functools.partial(jax.jit, static_argnames=("wanted", "pieces"))
        def forward(params, rows, positions, wanted, pieces):
            output = self._apply(params, rows, positions, "hidden_states" in wanted, pieces)
            return {name: output[name] for name in wanted}

        return forward

    @functools.cached_property
    def _sentence_vectors(self):
        @jax.jit
        def vectors(params, rows):
            """Of every pooling that the model has: what differs costs next to nothing."""
            output = self._apply(params, rows)
            hidden, pooled = output["last_hidden_state"], output["pooled_output"]
            return {
                name: pool(name, hidden, pooled, rows["attention_mask"]) for name in self.poolings
            }

        return vectors

    @functools.cached_property
    def _likeliest(self):
        @functools.partial(jax.jit, static_argnames=("pieces", "top"))
        def likeliest(params, rows, positions, pieces, top):
            logits = self._apply(params, rows, positions, pieces=pieces)["mlm_logits"]
            return jax.lax.top_k(jax.nn.softmax(logits), top)

        return likeliest

    def _apply(self, params, rows, positions=None, hidden_states=False, pieces=None) -> dict:
        """Every output by its name; what is not used of it, jax does not compute."""
        flat = flatten_dict(params, sep="/")
        flat |= {path: jnp.zeros(shape) for path, shape in self._absent.items()}
        output: Any = Albert(self.config, tuple(self.heads), self.heads).apply(
            {"params": unflatten_dict(flat, sep="/")},
            rows["input_ids"],
            rows["attention_mask"],
            rows["token_type_ids"],
            head_inputs={} if positions is None else {"mlm": {"positions": positions}},
            output_hidden_states=hidden_states,
        )
        outputs = {name: getattr(output, name) for name in ("last_hidden_state", *_NEEDS)}
        outputs["hidden_states"] = output.hidden_states
        if pieces is not None and pieces < self.config.vocab_size:
            known = jnp.arange(self.config.vocab_size) < pieces
            outputs["mlm_logits"] = jnp.where(known, outputs["mlm_logits"], -jnp.inf)
        return outputs

    @property
    def _lacking(self) -> set[str]:
        """Parts that an output may need and that the model does not have."""
        return {*self.missing, *(f"{name}_head" for name in HEADS if name not in self.heads)}

    @property
    def _num_pieces(self) -> int:
        """Rows of the model that are pieces: there may be more, which are never predicted."""
        return self.tokenizer.vocab_size if self.tokenizer else self.config.vocab_size

    @property
    def abilities(self) -> tuple[str, ...]:
        """What this model may be asked: those of ABILITIES that its heads are for."""
        kind = self._kind
        has = {
            "fill_mask": "mlm_head" not in self._lacking,
            "encode": True,
            "classify": not {"pooler", "classifier_head"} & self._lacking and kind != "choice",
            "choose": not {"pooler", "classifier_head"} & self._lacking and kind == "choice",
            "tag": "tokens_head" not in self._lacking,
            "answer": self._span_head is not None,
        }
        return tuple(name for name in ABILITIES if has[name])

    @property
    def _kind(self) -> str:
        """What the classifier's logits mean, of `kinds.KINDS`, or "choice"."""
        return self.heads.get("classifier", {}).get("kind", "classes")

    def _check_abilities(self, asked: Iterable[str]) -> None:
        if unknown := [name for name in asked if name not in self.abilities]:
            raise ValueError(
                f"This model cannot {', '.join(map(repr, unknown))}; it can "
                f"{', '.join(self.abilities)}."
            )

    @property
    def _span_head(self) -> str | None:
        """The head that finds answers; None where there is none."""
        names = ("span", "conditional_span")
        return next((name for name in names if f"{name}_head" not in self._lacking), None)

    def compute(
        self,
        ability: str,
        rows: dict[str, np.ndarray],
        positions: np.ndarray | None = None,
        top: int = 5,
    ) -> Any:
        """The numbers behind an ability, of rows that are pieces already.

        Args:
          ability: one of `abilities`.
          rows: int32 `input_ids`, `attention_mask` and `token_type_ids`, [B, L] each.
          positions: int32 [B, P], of "fill_mask" alone: where to guess.
          top: guesses at each position, of "fill_mask" alone; at most the pieces that there are.

        Returns:
          NumPy arrays of B rows, float32 where nothing else is said:
          "fill_mask": probabilities and int32 ids of pieces, [B, P, top] each, the likeliest first.
          "encode": a dict with [B, H] for every pooling that the model has.
          "classify", "choose": logits, [B, labels].
          "tag": logits, [B, L, labels].
          "answer": logits of start and end, [B, L, 2]; of a model of SQuAD 2.0 a dict of its beams.

        Raises:
          ValueError: the model has no such ability, or there is no position to guess at.
        """
        self._check_abilities([ability])
        count, length = rows["input_ids"].shape
        batch = _padded(rows, self.config.max_position_embeddings)
        if ability == "fill_mask":
            at = _checked_positions(positions, count, length)
            pieces, places = self._num_pieces, at.shape[1]
            wide = _grown(at, len(batch["input_ids"]), bucket(places))
            found: Any = self._likeliest(
                self.params, batch, wide, pieces=pieces, top=min(bucket(top), pieces)
            )
            cut: Any = np.s_[:count, :places, :top]
        elif ability in ("classify", "choose"):
            wanted = ("classifier_logits",)
            found = self._forward(self.params, batch, None, wanted=wanted, pieces=self._num_pieces)
            found, cut = found["classifier_logits"], np.s_[:count]
        else:
            programs = {
                "encode": self._sentence_vectors,
                "tag": self._token_logits,
                "answer": self._span_outputs,
            }
            found = programs[ability](self.params, batch)
            by_position = not isinstance(found, dict)  # vectors and beams have no position
            cut = np.s_[:count, :length] if by_position else np.s_[:count]
        return jax.tree.map(lambda x: np.asarray(x)[cut], jax.device_get(found))

    def warm_up(
        self,
        lengths: Iterable[int] = (32, 128, 512),
        batches: Iterable[int] = (1, 32),
        abilities: Iterable[str] | None = None,
        masks: int = 1,
        top: int = 5,
        on_program: Callable[[Program], None] | None = None,
    ) -> list[Program]:
        """Compiles programs ahead, so that the first calls do not wait, and runs each once.

        Rows and lengths of a call are grown to few sizes: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..., and 16
        or more positions, at most the model's. A call is served by what was compiled here where it
        grows to one of these shapes; every other shape is compiled when it comes.

        Args:
          lengths: pieces of the longest text of a call, with [CLS] and [SEP]; those over the
            model's positions count as all of them. `answer` is called with windows.
          batches: texts of a call, at most its batch_size; options of `choose`, windows of
            `answer`; `tag` computes its rows one by one.
          abilities: of `abilities`; None: all of them.
          masks: [MASK]s of a text of `fill_mask` at most.
          top: guesses of `fill_mask` at each.
          on_program: called with every `Program` as soon as it is there.

        Returns:
          What was compiled, each shape once.

        Raises:
          ValueError: the model has no such ability, or a number is below 1.
        """
        asked = self.abilities if abilities is None else tuple(abilities)
        self._check_abilities(asked)
        masks, top = _at_least_one(masks, "masks"), _at_least_one(top, "top")
        limit = self.config.max_position_embeddings
        shapes = {
            (bucket(_at_least_one(count, "batches")), padded_length(length, limit))
            for count in batches
            for length in lengths
        }
        made = []
        for ability in asked:
            for count, length in sorted(shapes):
                rows = {
                    "input_ids": np.full((count, length), UNK, np.int32),
                    "attention_mask": np.ones((count, length), np.int32),
                    "token_type_ids": np.zeros((count, length), np.int32),
                }
                positions = np.zeros((count, masks), np.int32)
                begin = time.perf_counter()
                self.compute(ability, rows, positions, min(top, self._num_pieces))
                made.append(Program(ability, count, length, time.perf_counter() - begin))
                if on_program:
                    on_program(made[-1])
        return made

    def tokenize(
        self,
        text: str | Iterable[str],
        pair: str | Iterable[str] | None = None,
        max_length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP], as arrays to call the model with.

        Args:
          text: one text, or any iterable of texts, which are padded to the longest.
          pair: as many second segments. [MASK] and the other special pieces mean themselves.
          max_length: longer rows lose pieces at the end of their longer segment.

        Returns:
          int32 `input_ids`, `attention_mask` and `token_type_ids`, each [B, L].

        Raises:
          ValueError: a text is longer than the model's positions and no `max_length` is given,
            something is not a text, or there is no vocabulary.
        """
        tokenizer = self._vocabulary()
        texts = _texts(text, "text")
        pairs = [None] * len(texts) if pair is None else _texts(pair, "pair")
        if not texts or len(texts) != len(pairs):
            raise ValueError(f"There are {len(texts)} texts and {len(pairs)} pairs.")
        limit = self.config.max_position_embeddings
        if max_length is not None and max_length > limit:
            raise ValueError(f"max_length {max_length} is over the model's {limit} positions.")
        rows = [tokenizer.encode_pair(a, b, max_length) for a, b in zip(texts, pairs, strict=True)]
        self._check_lengths(
            [ids for ids, _ in rows], f"give max_length={limit} to cut what is longer."
        )
        return _stacked_rows(rows)

    def _check_lengths(self, rows: list[list[int]], advice: str) -> None:
        limit = self.config.max_position_embeddings
        lengths = [len(ids) for ids in rows]
        if max(lengths) > limit:
            raise ValueError(
                f"Text {int(np.argmax(lengths))} has {max(lengths)} pieces and the model {limit} "
                f"positions; {advice}"
            )

    @overload
    def fill_mask(  # type: ignore[overload-overlap]  # a str is an Iterable[str] as well
        self, text: str, top: int = 5, batch_size: int = 32
    ) -> list[list[Guess]]: ...

    @overload
    def fill_mask(
        self, text: Iterable[str], top: int = 5, batch_size: int = 32
    ) -> list[list[list[Guess]]]: ...

    def fill_mask(self, text, top=5, batch_size=32):
        """The `top` likeliest pieces at every [MASK], best first.

        Args:
          text: one text, or any iterable of texts.
          top: guesses at each [MASK]; of a smaller vocabulary all of it.
          batch_size: texts that are computed at once.

        Returns:
          Of one text a list with a list of guesses for each [MASK]; of several a list of these,
          one for each text.

        Raises:
          ValueError: a text has no [MASK], is too long or is no text, the model has no vocabulary
            or MLM head, or a number is below 1.
        """
        if "mlm_head" in self.missing:
            raise ValueError("This checkpoint has no MLM head, so it cannot fill masks.")
        tokenizer = self._vocabulary()
        texts = _texts(text, "text")
        top = min(_at_least_one(top, "top"), tokenizer.vocab_size)
        batch_size = _at_least_one(batch_size, "batch_size")
        rows = [tokenizer.encode_pair(each) for each in texts]
        for number, (ids, _) in enumerate(rows):
            if MASK not in ids:
                where = "" if isinstance(text, str) else f"Text {number}: "
                raise ValueError(f"{where}There is no [MASK] in {texts[number]!r}.")
        if rows:
            self._check_lengths([ids for ids, _ in rows], "give less text.")
        filled: list[list[list[Guess]]] = [[] for _ in texts]
        for chosen in _alike(rows, batch_size):
            places = [np.flatnonzero(np.equal(rows[i][0], MASK)) for i in chosen]
            positions = np.zeros((len(chosen), max(map(len, places))), np.int32)
            for number, of_text in enumerate(places):
                positions[number, : len(of_text)] = of_text
            batch = _stacked_rows([rows[i] for i in chosen])
            probabilities, likeliest = self.compute("fill_mask", batch, positions, top)
            for number, i in enumerate(chosen):
                filled[i] = [
                    guesses_of(tokenizer, probabilities[number, place], likeliest[number, place])
                    for place in range(len(places[number]))
                ]
        return filled[0] if isinstance(text, str) else filled

    @property
    def poolings(self) -> tuple[str, ...]:
        """What `encode` can take a text's vector from."""
        return tuple(p for p in POOLING if p != "pooled" or "pooler" not in self.missing)

    @property
    def pooling(self) -> str:
        """What `encode` takes a text's vector from unless told: what the model's sentence vectors
        were trained with; "mean" of a model without such training."""
        return self.heads["sentence"]["pooling"] if "sentence" in self.heads else "mean"

    def encode(
        self, texts: Iterable[str], pooling: str | None = None, batch_size: int = 32
    ) -> np.ndarray:
        """Sentence vectors: float32 [number of texts, H], in the order of the texts.

        Args:
          texts: any iterable of texts; those longer than the model's positions are cut, with a
            warning.
          pooling: "mean" of the last hidden states of all pieces, [CLS] and [SEP] among them;
            "cls", that of [CLS]; "pooled", the pooler's output. None: what `Pretrained.pooling`
            says.
          batch_size: texts that are computed at once, at least 1.

        Raises:
          ValueError: there is no such pooling, no pooler or no vocabulary, or something is not a
            text.
        """
        if isinstance(texts, str):
            raise ValueError("encode takes a list of texts; for one, write encode([text])[0].")
        pooling = self.pooling if pooling is None else pooling
        if pooling not in POOLING:
            raise ValueError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLING)}")
        if pooling == "pooled" and "pooler" in self.missing:
            raise ValueError("This checkpoint has no pooler.")
        batch_size = _at_least_one(batch_size, "batch_size")
        tokenizer, limit = self._vocabulary(), self.config.max_position_embeddings
        pieces = [tokenizer.encode_special(text) for text in _texts(texts, "text")]
        if long := sum(len(ids) + 2 > limit for ids in pieces):
            warnings.warn(
                f"{long} of {len(pieces)} texts are cut to the model's {limit} positions.",
                stacklevel=2,
            )
        rows = [tokenizer.with_ends([ids], limit) for ids in pieces]
        vectors = np.zeros((len(rows), self.config.hidden_size), np.float32)
        for chosen in _alike(rows, batch_size):
            found = self.compute("encode", _stacked_rows([rows[i] for i in chosen]))
            vectors[chosen] = found[pooling]
        return vectors

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is an Iterable[str] as well
        self, text: str, pair: str | None = None, batch_size: int = 32, exit: str | None = None
    ) -> "Class": ...

    @overload
    def classify(
        self,
        text: Iterable[str],
        pair: Iterable[str] | None = None,
        batch_size: int = 32,
        exit: str | None = None,
    ) -> "list[Class]": ...

    def classify(self, text, pair=None, batch_size=32, exit=None):
        """What a fine-tuned model says of a text, or of a pair of texts.

        Args:
          text: one text, or any iterable of texts. Special pieces such as [SEP] are plain
            characters, as in fine-tuning; texts longer than the model's positions are cut, with a
            warning.
          pair: as many second texts, for a model that was fine-tuned on pairs.
          batch_size: texts that are computed at once. Leaving early, they are done when the slowest
            of them has left: with 1 each takes the time of its own depth.
          exit: when a text has gone through enough layers, for a model that was fine-tuned with
            data.exits: "patience:3", when three depths in a row gave the answer of the one before
            ("patience:3:0.1" where numbers that differ by less than 0.1 are the same);
            "confidence:0.9"; "depth:4". None: all layers.

        Returns:
          A `Class` of one text; of several a list of them, in their order.

        Raises:
          ValueError: the model has no classifier or no vocabulary, or chooses among options;
            something is not a text, or it cannot be left so.
        """
        if "classifier_head" in self._lacking:
            raise ValueError(
                "This model has no classifier: fine-tune it on labelled texts first, such as with "
                "configs/finetune/texts.py."
            )
        if self._kind == "choice":
            raise ValueError("This model tells which of several options is right: ask `choose`.")
        rule = None if exit is None else self._checked_exit(exit)
        texts = _texts(text, "text")
        pairs = [None] * len(texts) if pair is None else _texts(pair, "pair")
        if len(texts) != len(pairs):
            raise ValueError(f"There are {len(texts)} texts and {len(pairs)} pairs.")
        if rule is None:
            logits = self.classifier_logits(texts, pairs, batch_size)
            found = [class_of(self._kind, self.label_names, row) for row in logits]
        else:
            rows = self._pairs(texts, pairs)
            logits, depths = self._left(rows, _at_least_one(batch_size, "batch_size"), rule)
            found = [
                class_of(self._kind, self.label_names, row)._replace(depth=int(depth))
                for row, depth in zip(logits, depths, strict=True)
            ]
        return found[0] if isinstance(text, str) else found

    def _checked_exit(self, text: str) -> exits.Exit:
        if "exits" not in self.heads:
            raise ValueError(
                f"exit is {text!r} and this model has one classifier, behind its last layer: "
                "fine-tune it with data.exits=together, or this model itself with "
                "data.exits=frozen."
            )
        rule = exits.parse(text)
        if found := exits.problem(rule, self.heads["classifier"]["kind"], self.config.depth):
            raise ValueError(f"{found}.")
        return rule

    def choose(self, context: str, question: str, options: Iterable[str]) -> "Chosen":
        """Which of several options answers a question on a text.

        As in fine-tuning, the option takes the place of every "_" in the question, or stands
        behind it; of both together the last 128 pieces are kept, and the context is cut at its end,
        with a warning.

        Raises ValueError: the model was not fine-tuned on choices, has no vocabulary, or something
        is not a text.
        """
        if "classifier_head" in self._lacking or self._kind != "choice":
            raise ValueError(
                "This model was not fine-tuned to choose: see configs/finetune/race.py."
            )
        names = _texts(options, "options")
        if isinstance(options, str) or len(names) < 2:
            raise ValueError("options is a list of at least two texts.")
        (context,), (question,) = _texts([context], "context"), _texts([question], "question")
        tokenizer, limit = self._vocabulary(), self.config.max_position_embeddings
        rows = choice_sequences([(context, question, names)], tokenizer, limit)
        return chosen_of(names, self._logits_of(rows, len(names)))

    def tag(self, text: str) -> "list[Tag]":
        """The label of every word of a text; words are what white space parts.

        Longer texts than the model has positions are read in parts, each by itself.

        Raises ValueError: the model was not fine-tuned on tokens, has no vocabulary, or the text is
        no text.
        """
        if "tokens_head" in self._lacking:
            raise ValueError(
                "This model was not fine-tuned to label tokens: see configs/finetune/tokens.py."
            )
        (text,) = _texts([text], "text")
        limit = self.config.max_position_embeddings
        sentences = word_sequences(
            [[word for word, _ in words_of(text)]], self._vocabulary(), limit
        )
        if sentences.cut:
            warnings.warn(
                f"{sentences.cut} words are longer than the model's {limit} positions; their first "
                "pieces are read.",
                stacklevel=2,
            )
        length = int(sentences.rows.lengths.max(initial=0))
        logits = [
            self.compute("tag", sentences.rows.padded([row], length))[0]
            for row in range(len(sentences.rows))
        ]
        return tags_of(text, sentences, self.labels, logits)

    @functools.cached_property
    def _token_logits(self):
        @jax.jit
        def logits(params, rows):
            output: Any = Albert(self.config, tuple(self.heads), self.heads).apply(
                {"params": params},
                rows["input_ids"],
                rows["attention_mask"],
                rows["token_type_ids"],
            )
            return output.logits["tokens"]

        return logits

    def answer(
        self,
        question: str,
        context: str,
        max_answer: int = 30,
        doc_stride: int = 128,
        max_question: int = 64,
    ) -> "Answer":
        """The answer to a question that stands in a text.

        The text is read in windows of the model's length, as in fine-tuning.

        Args:
          question, context: texts.
          max_answer: pieces of an answer at most.
          doc_stride: tokens from one window to the next.
          max_question: pieces of the question that are read, the first ones.

        Returns:
          An `Answer`; its text is None where the model, of SQuAD 2.0, holds that there is none.

        Raises ValueError: the model was not fine-tuned on SQuAD, has no vocabulary, or something is
        not a text.
        """
        head = self._span_head
        if head is None:
            raise ValueError(
                "This model was not fine-tuned to answer questions: see configs/finetune/squad.py."
            )
        (question,), (context,) = _texts([question], "question"), _texts([context], "context")
        if not context.strip():
            raise ValueError("context is empty.")
        limit = self.config.max_position_embeddings
        options = Options(limit, doc_stride, min(max_question, limit // 2), False)
        asked = Question("", question, context, (), None)
        windows = make_windows([asked], self._vocabulary(), options, exactly=False)
        length = int(windows.sequences.lengths.max())
        rows = windows.sequences.padded(range(len(windows)), length)
        found = self.compute("answer", rows)
        return answer_of(asked, windows, found, max_answer, self.heads[head].get("threshold", 0.0))

    @functools.cached_property
    def _span_outputs(self):
        @jax.jit
        def outputs(params, rows):
            (head,) = (name for name in ("span", "conditional_span") if name in self.heads)
            inputs = {}
            if head == "conditional_span":
                mask = outside_of_paragraph(rows["attention_mask"], rows["token_type_ids"])
                inputs[head] = {"mask": mask}
            output: Any = Albert(self.config, tuple(self.heads), self.heads).apply(
                {"params": params},
                rows["input_ids"],
                rows["attention_mask"],
                rows["token_type_ids"],
                head_inputs=inputs,
            )
            return output.logits[head]

        return outputs

    @property
    def label_names(self) -> list[str]:
        """What the classifier tells apart, in the order of its logits; numbers where it has no
        names. Empty for one that gives a number, and where there is none."""
        fields = self.heads.get("classifier")
        if fields is None or self._kind == "number":
            return []
        return list(self.labels) or [str(number) for number in range(fields["labels"])]

    def classifier_logits(
        self, texts: Sequence[str], pairs: Sequence[str | None], batch_size: int = 32
    ) -> np.ndarray:
        """float32 [texts, labels], of texts or of pairs; see `classify`."""
        self._check_abilities(("classify",))
        batch_size = _at_least_one(batch_size, "batch_size")
        return self._logits_of(self._pairs(texts, pairs), batch_size)

    def _pairs(self, texts: Sequence[str], pairs: Sequence[str | None]) -> Sequences:
        limit = self.config.max_position_embeddings
        return make_sequences(list(zip(texts, pairs, strict=True)), self._vocabulary(), limit)

    def _logits_of(self, rows: Sequences, batch_size: int) -> np.ndarray:
        """The classifier's, float32 [rows, labels]."""
        fields = self.heads["classifier"]
        ability = "choose" if self._kind == "choice" else "classify"
        found = np.zeros((len(rows), fields["labels"]), np.float32)
        for chosen, batch in self._batches(rows, batch_size):
            found[chosen] = self.compute(ability, batch)
        return found

    def _left(
        self, rows: Sequences, batch_size: int, rule: exits.Exit
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logits with which rows leave, float32 [rows, labels], and after how many layers."""
        logits = np.zeros((len(rows), self.heads["classifier"]["labels"]), np.float32)
        depths = np.zeros(len(rows), np.int32)
        for chosen, batch in self._batches(rows, batch_size):
            padded = _padded(batch, self.config.max_position_embeddings)
            real = np.arange(len(padded["input_ids"])) < len(chosen)
            outputs = self._leaving(self.params, padded, real, rule=rule)
            logits[chosen], depths[chosen] = (np.asarray(x)[: len(chosen)] for x in outputs)
        return logits, depths

    def _batches(self, rows: Sequences, batch_size: int) -> Iterator[tuple[np.ndarray, dict]]:
        """Numbers of rows of alike lengths, and the rows, padded to the longest."""
        limit = self.config.max_position_embeddings
        if rows.cut:
            warnings.warn(
                f"{rows.cut} of {len(rows)} texts are cut to the model's {limit} positions.",
                stacklevel=5,
            )
        order = np.argsort(rows.lengths, kind="stable")
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            yield chosen, rows.padded(chosen, int(rows.lengths[chosen].max()))

    @functools.cached_property
    def _leaving(self):
        @functools.partial(jax.jit, static_argnames="rule")
        def leaving(params, rows, real, rule):
            found: Any = Albert(self.config, tuple(self.heads), self.heads).apply(
                {"params": params},
                rows["input_ids"],
                rows["attention_mask"],
                rows["token_type_ids"],
                rule,
                real,
                method="leave",
            )
            return found

        return leaving

    def save(self, path: str | os.PathLike, format: str = "albert") -> None:
        """Writes the model with its vocabulary as a new folder, whole or not at all.

        An optimizer's moments are not part of a loaded model; `tools/convert.py` takes them along.

        Args:
          path: the folder; must not be there yet.
          format: "albert", as a workdir; "huggingface"; "original", the released program's.

        Raises:
          CheckpointError: the folder is there, or the format cannot hold such a model.
          ValueError: there is no such format, or the parameters are not those of the model.
        """
        formats.write(self._weights(), place(str(path)), format)

    def export(
        self,
        path: str | os.PathLike,
        format: str = "onnx",
        heads: Sequence[str] = (),
        precisions: Sequence[str] = ("float32",),
        **options,
    ) -> dict[str, Any]:
        """Writes a new folder with all that another program needs to run the model, checked.

        Args:
          path: the folder; must not be there yet.
          format: "onnx", "stablehlo" or "litert".
          heads: what the program gives, such as ("mlm", "sentence"); none: what the model was
            trained for.
          precisions: "float32", "int8", "int4"; a file for each.
          options: of `albert.export.export`.

        Returns:
          The manifest that lies in the folder: files, sizes, digests and what the check found.

        Raises:
          CheckpointError: the folder is there, the format cannot hold the model, or the program
            does not compute what the model does.
          ValueError: the parameters are not those of the model.
        """
        from albert.export import export

        return export(self._weights(), place(str(path)), format, heads, precisions, **options)

    def _weights(self) -> Weights:
        """The model as formats hold it; raises ValueError when its parameters were changed to other
        shapes."""
        whole = {k: np.asarray(v) for k, v in flatten_dict(self.params, sep="/").items()}
        try:
            flat = unstacked(self.config, whole)
        except CheckpointError as error:
            raise ValueError(f"params: {error}") from error
        absent = set(OPTIONAL_PARTS) - {part_of(name) for name in flat}
        for name, shape in parameter_shapes(self.config, self.heads).items():
            found = flat[name].shape if name in flat else None
            if found != shape and part_of(name) not in absent:
                raise ValueError(f"params: {name} has shape {found}; the model's is {shape}.")
        return Weights(
            self.config,
            flat,
            self.step,
            tokenizer=self.tokenizer,
            heads=self.heads,
            labels=self.labels,
        )

    def _vocabulary(self) -> Tokenizer:
        if self.tokenizer is None:
            why = self.vocabulary_note or "There was no vocabulary beside the checkpoint"
            raise ValueError(
                f"{why.rstrip('.')}; load it with albert.load(PATH, tokenizer=FILE.model)."
            )
        return self.tokenizer


# Attributes that hold compiled programs.
_COMPILED = (
    "_forward",
    "_leaving",
    "_likeliest",
    "_sentence_vectors",
    "_span_outputs",
    "_token_logits",
)


def load(
    path: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    dtype: str = "float32",
    depth: int | None = None,
) -> Pretrained:
    """The model in `path`; see `albert.load`."""
    vocabulary = None if tokenizer is None else place(str(tokenizer))
    weights = formats.read(place(str(path)), vocabulary=vocabulary)
    if weights.vocabulary_note:
        warnings.warn(weights.vocabulary_note, stacklevel=3)
    return Pretrained(weights if depth is None else first_layers(weights, depth), dtype)


def _texts(texts: str | Iterable[str], name: str) -> list[str]:
    """One text or any iterable of texts as a list, in its order; raises ValueError."""
    if isinstance(texts, str):
        return [texts]
    kind = type(texts).__name__
    no_lists = (Mapping, set, frozenset, bytes, bytearray)
    if isinstance(texts, no_lists) or not isinstance(texts, Iterable):
        reason = " has no order and" if isinstance(texts, (set, frozenset)) else ""
        raise ValueError(f"{name} is a {kind}, which{reason} is not a list of texts.")
    axes = getattr(texts, "ndim", 1)
    if axes != 1:  # a table would give its columns' names
        raise ValueError(f"{name} is a {kind} of {axes} axes; give one column of texts.")
    listed = list(texts)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            shown = repr(text)
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            raise ValueError(
                f"{name} {number} (the first is 0) is {shown}, of type {type(text).__name__}; it "
                "must be a str."
            )
    return listed


def _at_least_one(value, name: str) -> int:
    """A whole number of at least 1; raises ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return number


def _checked(
    config: AlbertConfig, input_ids, attention_mask, token_type_ids
) -> dict[str, np.ndarray]:
    """The three arrays, int32 [B, L]; raises ValueError."""
    ids = _array(input_ids, "input_ids")
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"input_ids has shape {ids.shape} and type {ids.dtype}; it must be integers [B, L]."
        )
    if not ids.shape[1]:
        raise ValueError(f"input_ids has shape {ids.shape}: its rows are empty.")
    rows = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids)
        if attention_mask is None
        else _array(attention_mask, "attention_mask"),
        "token_type_ids": np.zeros_like(ids)
        if token_type_ids is None
        else _array(token_type_ids, "token_type_ids"),
    }
    for name, value in rows.items():
        if value.shape != ids.shape:
            raise ValueError(f"{name} has shape {value.shape} and input_ids {ids.shape}.")
    mask = rows["attention_mask"]
    if not np.isin(mask, (0, 1)).all():
        wrong = mask[~np.isin(mask, (0, 1))][0]
        raise ValueError(f"attention_mask holds {wrong}; it must be 1 for a token and 0 for none.")
    if rows["token_type_ids"].dtype.kind not in "iu":
        raise ValueError(
            f"token_type_ids has type {rows['token_type_ids'].dtype}; it must be integers."
        )
    for name, bound in (
        ("input_ids", config.vocab_size),
        ("token_type_ids", config.type_vocab_size),
    ):
        value = rows[name]
        if value.size and (value.min() < 0 or value.max() >= bound):
            wrong = value[(value < 0) | (value >= bound)][0]
            raise ValueError(f"{name} holds {wrong}; the model knows 0 to {bound - 1}.")
    if ids.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"input_ids are {ids.shape[1]} long and the model has "
            f"{config.max_position_embeddings} positions."
        )
    return {name: value.astype(np.int32) for name, value in rows.items()}


def _checked_positions(positions, count: int, length: int) -> np.ndarray:
    """int32 [B, P], P at least 1; raises ValueError."""
    array = _array(positions, "mlm_positions")
    if array.ndim != 2 or len(array) != count or not array.shape[1] or array.dtype.kind not in "iu":
        raise ValueError(
            f"mlm_positions has shape {array.shape} and type {array.dtype}; it must be integers "
            f"[{count}, P], as many rows as input_ids."
        )
    if array.size and (array.min() < 0 or array.max() >= length):
        wrong = array[(array < 0) | (array >= length)][0]
        raise ValueError(f"mlm_positions holds {wrong}; the rows have positions 0 to {length - 1}.")
    return array.astype(np.int32)


def _array(values, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise ValueError(
            f"{name} is no array ({error}); pad its rows to one length, as model.tokenize does."
        ) from error


def _stacked_rows(rows: list[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
    """Ids and token types of rows as int32 [B, L], padded to the longest."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
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


def _alike(rows: list[tuple[list[int], list[int]]], batch_size: int) -> Iterator[list[int]]:
    """Batches of rows by their numbers, of alike lengths, so that there is less padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def _padded(rows: dict[str, np.ndarray], limit: int) -> dict[str, np.ndarray]:
    """int32 [B, L] arrays grown to a bucket of rows and of positions, at most `limit` of these.

    The numbers of given rows do not depend on it: nothing attends to what is added. A row without
    any token, whose positions all weigh the same in attention, is told to see all of its own, so
    that it does not see the added ones either.
    """
    count, length = rows["input_ids"].shape
    mask = rows["attention_mask"]
    rows = rows | {"attention_mask": np.where(mask.any(axis=1, keepdims=True), mask, 1)}
    positions = padded_length(length, limit)
    padded = {name: _grown(value, bucket(count), positions) for name, value in rows.items()}
    padded["attention_mask"][count:, 0] = 1
    return padded


def padded_length(length: int, limit: int) -> int:
    """The positions that rows of a length are computed with, at most `limit`; raises ValueError."""
    return min(bucket(max(_at_least_one(length, "lengths"), _SHORTEST)), limit)


def _grown(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """int [b, l] -> [rows, columns], with 0 for what is added: [PAD], no token, type 0."""
    return np.pad(array, ((0, rows - array.shape[0]), (0, columns - array.shape[1])))
