"""Times text to ids and ids to finished rows, on one core.

  python benchmarks/data.py --text=corpus.txt --tokenizer=30k-clean.model
  python benchmarks/data.py                        # the installed documentation, own vocabulary

Prints the median of --repeats runs and one JSON line. Text to ids includes sentence
splitting where the source needs it, and normalisation, but not reading the file;
ids to rows includes reading the prepared corpus, sentence order, truncation, n-gram masking and
stacking into batches.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_TEXT = flags.DEFINE_string("text", "python-docs", "A source, as in data.train_sources.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "SentencePiece model; empty: 8000 pieces of own.")
_LENGTH = flags.DEFINE_integer("length", 512, "Sequence length.")
_ROWS = flags.DEFINE_integer("rows", 2000, "Rows to make in each run.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs.", lower_bound=5)


def main() -> None:
    import numpy as np

    from albert.data.corpus import encode_documents, prepare_corpus
    from albert.data.examples import CorpusPlan, ExampleOptions, Examples
    from albert.data.pipeline import BatchSource
    from albert.data.sources import parse_source
    from albert.data.tokenizer import Tokenizer
    from albert.data.vocabulary import prepare_vocabulary

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source = parse_source(_TEXT.value, "text")
    with tempfile.TemporaryDirectory() as folder:
        path = _TOKENIZER.value or prepare_vocabulary(
            [source], 8000, "en", True, True, 0, Path(folder)
        )
        tokenizer = Tokenizer(path)
        documents = list(source.documents())
        encode_seconds = []
        for _ in range(_REPEATS.value):
            start = time.perf_counter()
            encoded = encode_documents(documents, tokenizer, source.paragraphs, "en")
            encode_seconds.append(time.perf_counter() - start)
        tokens = sum(len(ids) for ids, _ in encoded)
        corpus = prepare_corpus(source, tokenizer, "en", 0, Path(folder))
        length = _LENGTH.value
        options = ExampleOptions(length, max(1, round(0.15 * length)), 0.15, 3, 0.1, "split")
        start = time.perf_counter()
        plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
        plan_seconds = time.perf_counter() - start
        batches = BatchSource(Examples([plan], (), tokenizer, options, 0), 16, tuple(range(16)),
                              10**9)  # fmt: skip
        row_seconds, made = [], 0
        batches[0]
        for run in range(_REPEATS.value):
            made = 0
            start = time.perf_counter()
            for step in range(_ROWS.value // 16):
                made += int(batches[run * _ROWS.value // 16 + step]["attention_mask"].sum())
            row_seconds.append(made / (time.perf_counter() - start))
    facts = {
        "text_to_ids_tokens_per_second": tokens / statistics.median(encode_seconds),
        "rows_tokens_per_second": statistics.median(row_seconds),
        "plan_seconds": plan_seconds,
        "tokens": tokens,
        "bytes_per_token": 2 if tokenizer.vocab_size <= 2**16 else 4,
    }
    print(f"text to ids  {facts['text_to_ids_tokens_per_second']:12,.0f} tokens/s on one core")
    print(f"ids to rows  {facts['rows_tokens_per_second']:12,.0f} tokens/s on one core, L {length}")
    print(f"epoch plan   {1000 * plan_seconds:12,.1f} ms for {tokens:,} tokens")
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main)
