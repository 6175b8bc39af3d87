"""Times preparing text, making rows, and planning an epoch as large as Wikipedia and books.

  python benchmarks/data.py --text=corpus.txt --tokenizer=30k-clean.model
  python benchmarks/data.py --text=corpus.txt --tokenizer=30k-clean.model --cores=1,2,4
  python benchmarks/data.py --plan_tokens=4000000000     # only the plan, on made-up documents

Prints medians of --repeats runs, and one JSON line. Text to ids is measured twice: on one core in
this process, sentence splitting and normalisation included, without reading the file; and as a user
does it, from the file to the finished folder, by processes on --cores. Its peer, run in turn with
it, is the released program's own loop over lines in the same SentencePiece (--peer=0 leaves it
out). Ids to rows, on one core, includes reading the prepared corpus, sentence order, truncation,
n-gram masking and packing.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_TEXT = flags.DEFINE_string("text", "python-docs", "A source, as in data.train_sources.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "SentencePiece model; empty: 8000 pieces of own.")
_LENGTH = flags.DEFINE_integer("length", 512, "Sequence length.")
_ROWS = flags.DEFINE_integer("rows", 2000, "Rows to make in each run.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs.", lower_bound=1)
_CORES = flags.DEFINE_list("cores", ["1"], "Numbers of cores to prepare the whole text with.")
_PLAN_TOKENS = flags.DEFINE_integer("plan_tokens", 0, "Only plan an epoch of so many tokens.")
_PEER = flags.DEFINE_bool("peer", True, "Time the released program's tokenisation as well.")


def options_of(packing: int):
    from albert.data.pretraining.plan import ExampleOptions

    length = _LENGTH.value
    return ExampleOptions(
        seq_length=length,
        max_predictions=max(1, round(0.15 * length)),
        masking_rate=0.15,
        masking_unit="word",
        max_ngram=3,
        corruption=(0.8, 0.1, 0.1),
        sentence_objective="sop",
        short_seq_prob=0.1,
        single_segment="split",
        packing=packing,
        static_copies=0,
    )


def released_tokenisation(lines, path):
    """Tokens of the lines as the released program's `FullTokenizer` makes them, one by one."""
    import unicodedata

    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor()
    sp.Load(str(path))
    tokens = 0
    for line in lines:
        text = " ".join(line.strip().split()).replace("``", '"').replace("''", '"')
        text = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in text if not unicodedata.combining(c)).lower()
        pieces = []
        for piece in sp.EncodeAsPieces(text):
            if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
                again = sp.EncodeAsPieces(piece[:-1].replace("\u2581", ""))
                if piece[0] != "\u2581" and again[0][0] == "\u2581":
                    again = again[1:] if len(again[0]) == 1 else [again[0][1:], *again[1:]]
                pieces += [*again, piece[-1]]
            else:
                pieces.append(piece)
        tokens += len([sp.PieceToId(piece) for piece in pieces])
    return tokens


def measure_text_to_ids(source, tokenizer, facts):
    from albert.data.corpus.writer import Preparation

    preparation = Preparation(source, tokenizer, "en", 0, 1.0)
    blocks = [block for part in source.parts() for block in source.blocks(part)]
    lines = [s for block in blocks for d in source.parse(block).documents for s in d]
    ours, theirs = [], []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        encoded = [preparation.encode(block) for block in blocks]
        ours.append(time.perf_counter() - start)
        if _PEER.value:
            start = time.perf_counter()
            peer_tokens = released_tokenisation(lines, tokenizer.path)
            theirs.append(time.perf_counter() - start)
    tokens = sum(len(p["ids"]) for e in encoded for d in e.documents for p in d)
    facts["tokens"] = tokens
    facts["text_to_ids_tokens_per_second"] = tokens / statistics.median(ours)
    print(f"text to ids  {facts['text_to_ids_tokens_per_second']:12,.0f} tokens/s on one core")
    if theirs:
        rate = peer_tokens / statistics.median(theirs)
        facts["peer_tokens_per_second"] = rate
        print(f"  released   {rate:12,.0f} tokens/s: its tokenisation alone, without masking")


class PeakMemory:
    """Resident bytes at most of this process and of any one below it, seen every tenth second."""

    def __enter__(self):
        self.own, self.worker = 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        import psutil

        process = psutil.Process()
        while not self._stop.wait(0.1):
            self.own = max(self.own, process.memory_info().rss)
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    self.worker = max(self.worker, child.memory_info().rss)


def measure_preparation(source, tokenizer, facts):
    from albert.data.corpus.writer import prepare_corpus

    allowed = sorted(os.sched_getaffinity(0))
    facts["preparation"] = {}
    for count in map(int, _CORES.value):
        seconds = []
        os.sched_setaffinity(0, set(allowed[:count]))
        with PeakMemory() as memory:
            for _ in range(_REPEATS.value):
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    corpus = prepare_corpus(source, tokenizer, "en", 0, 1.0, Path(folder))
                    seconds.append(time.perf_counter() - start)
                    size = sum(f.stat().st_size for f in corpus.path.rglob("*") if f.is_file())
                    manifest = corpus.manifest
        median = statistics.median(seconds)
        share = size / manifest["characters"]
        facts["preparation"][count] = {
            "seconds": median,
            "tokens": manifest["tokens"],
            "disk_bytes_per_character": share,
            "reader_peak_bytes": memory.own,
            "tokeniser_peak_bytes": memory.worker,
        }
        print(
            f"prepared     {median:12.1f} s from file to folder on {count} cores, "
            f"{manifest['tokens'] / median:,.0f} tokens/s, {share:.2f} bytes on disk per "
            f"character; {memory.own / 1e6:,.0f} MB resident at most here, "
            f"{memory.worker / 1e6:,.0f} MB in one that tokenises"
        )
    os.sched_setaffinity(0, set(allowed))


def measure_rows(source, tokenizer, folder, facts):
    import numpy as np

    from albert.data.corpus.writer import prepare_corpus
    from albert.data.loader import BatchSource
    from albert.data.pretraining.examples import Examples
    from albert.data.pretraining.plan import CorpusPlan

    corpus = prepare_corpus(source, tokenizer, "en", 0, 1.0, folder)
    for packing in (0, 8):
        options = options_of(packing)
        plan = CorpusPlan(corpus, np.arange(corpus.num_documents), options, (0, 0))
        examples = Examples([plan], (), 1.0, tokenizer, options, 0)
        batches = BatchSource(examples, 16, tuple(range(16)), 10**9)
        batches[0]
        rates = []
        steps = _ROWS.value // 16
        for run in range(_REPEATS.value):
            start = time.perf_counter()
            made = sum(
                int(batches[run * steps + step]["attention_mask"].sum()) for step in range(steps)
            )
            rates.append(made / (time.perf_counter() - start))
        name = "packed" if packing else "unpacked"
        facts[f"rows_tokens_per_second_{name}"] = statistics.median(rates)
        facts[f"padding_{name}"] = plan.padding()
        print(
            f"ids to rows  {statistics.median(rates):12,.0f} tokens/s on one core, "
            f"L {_LENGTH.value}, {name}, {100 * plan.padding():.1f} % padding"
        )


def measure_plan(tokens: int, facts):
    """Plans an epoch of made-up documents as long as Wikipedia's, from an index on disk."""
    import numpy as np

    from albert.data.pretraining.plan import CorpusPlan

    sentences, documents = tokens // 25, tokens // 620
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentence_lengths.npy"
        lengths = np.lib.format.open_memmap(path, "w+", np.uint32, (sentences,))
        for first in range(0, sentences, 10**7):
            part = lengths[first : first + 10**7]
            part[:] = np.clip(rng.gamma(2.0, 13.0, len(part)), 1, 400)
        total = int(lengths.sum(dtype=np.int64))
        del lengths
        cuts = np.unique(rng.integers(1, sentences, documents - 1))
        starts = np.concatenate([[0], cuts, [sentences]])
        for packing in (0, 8):
            corpus = types.SimpleNamespace(
                sentence_lengths=np.load(path, mmap_mode="r").view(np.ndarray),
                document_starts=starts,
                num_sentences=sentences,
            )
            start = time.perf_counter()
            plan = CorpusPlan(corpus, np.arange(len(starts) - 1), options_of(packing), (0, 0))
            seconds = time.perf_counter() - start
            peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
            facts[f"plan_{packing}"] = {
                "tokens": total,
                "documents": len(starts) - 1,
                "chunks": len(plan.epoch(0).chunks),
                "rows": plan.rows_per_epoch,
                "seconds": seconds,
                "padding": plan.padding(),
                "peak_bytes": int(peak) * 1024,
            }
            print(
                f"epoch plan   {seconds:12.1f} s for {total:,} tokens, "
                f"{len(plan.epoch(0).chunks):,} chunks in {plan.rows_per_epoch:,} rows, "
                f"{100 * plan.padding():.1f} % padding, {int(peak) / 1e6:.2f} GB resident at "
                f"most (packing {packing})"
            )


def main() -> None:
    from albert.data.sources.parse import parse_source
    from albert.data.tokenizer import Tokenizer
    from albert.data.vocabulary import prepare_vocabulary

    facts: dict = {}
    if _PLAN_TOKENS.value:
        measure_plan(_PLAN_TOKENS.value, facts)
        print(json.dumps(facts))
        return
    source = parse_source(_TEXT.value, "text")
    with tempfile.TemporaryDirectory() as folder:
        path = _TOKENIZER.value or prepare_vocabulary(
            [source], 8000, "en", True, True, 0, 1.0, 0.99995, 1.0, Path(folder)
        )
        tokenizer = Tokenizer(path)
        measure_preparation(source, tokenizer, facts)  # first, while this process holds no text
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        measure_text_to_ids(source, tokenizer, facts)
        measure_rows(source, tokenizer, Path(folder), facts)
    print(json.dumps(facts))


if __name__ == "__main__":
    cli.run(main)
