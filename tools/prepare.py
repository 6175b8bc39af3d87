"""Makes the vocabulary and the prepared text of a config, and nothing else.

  python tools/prepare.py --config=configs/base.py \\
      --config.data.train_sources="('wiki/', 'books/')" --config.data.folder=/data/prepared

What is there already is found; a preparation that failed goes on where it stopped. Training with
the same config and data.folder then begins at once, on this machine or on any that sees or has a
copy of the folder. With --config.data.folder=gs://BUCKET/prepared it is made here, below
$XDG_CACHE_HOME or ~/.cache, and sent there: a job of several hosts finds it, and makes nothing.

For text that outgrows a machine, the same by Apache Beam (pip install -r requirements-beam.txt).
Workers need this package; `pip install build && python -m build --sdist` makes it a file:

  python tools/prepare.py --config=configs/base.py --beam_runner=DataflowRunner \\
      --beam_option=--project=NAME --beam_option=--region=us-central1 \\
      --beam_option=--temp_location=gs://BUCKET/tmp \\
      --beam_option=--extra_package=dist/albert-0.2.0.tar.gz \\
      --config.data.train_sources="('gs://BUCKET/wiki/*.jsonl.gz',)" \\
      --config.data.tokenizer=/shared/30k-clean.model --config.data.folder=/shared/prepared

data.folder must be the same place for all workers (a network file system or a mounted bucket, which
training then reads as gs://BUCKET/...), and the vocabulary is given. A worker makes a part: 128 MB
of a plain file, a whole compressed file.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

if TYPE_CHECKING:
    from albert.data.corpus.reader import Corpus

_CONFIG = cli.define_config()
_RUNNER = flags.DEFINE_string(
    "beam_runner", "", "Runner of Apache Beam, such as DirectRunner; empty: the cores of this one."
)
_OPTIONS = flags.DEFINE_multi_string(
    "beam_option", [], "An option of the Beam pipeline, such as --region=us-central1. Repeatable."
)


def main() -> None:
    from albert.data.pretraining.prepare import prepare_with_beam
    from albert.programs.rows import as_begun
    from albert.tasks.pretraining import Pretraining

    config, start = as_begun(cli.checked(_CONFIG))
    if _RUNNER.value:
        corpora = prepare_with_beam(
            config.data,
            config.model.vocab_size,
            _RUNNER.value,
            _OPTIONS.value,
            padded=bool(config.init_from),
        )
    else:
        data = Pretraining.read(config, start)
        corpora = [plan.corpus for plan in [*data.train.plans, *data.valid.plans]]
        print(
            f"{data.train.rows_per_epoch:,} rows of {config.data.seq_length} an epoch, "
            f"{100 * data.train.padding():.1f} % padding, "
            f"{100 * data.train.dropped_share():.1f} % of the tokens in no row; vocabulary "
            f"{data.tokenizer.path}"
        )
    for corpus in dict.fromkeys(corpora):
        facts = corpus.manifest
        print(
            f"{facts['spec']}: {facts['documents']:,} documents, {facts['sentences']:,} sentences, "
            f"{facts['tokens']:,} tokens, {facts['bad_records']:,} bad records left out, "
            f"{_unknown(corpus)}in {corpus.path}"
        )


def _unknown(corpus: "Corpus") -> str:
    from albert.data.corpus.reader import unknown_characters

    share = unknown_characters(corpus)
    return "" if share is None else f"{share:.2%} of the characters unknown, "


if __name__ == "__main__":
    cli.run(main)
