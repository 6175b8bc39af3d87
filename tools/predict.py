"""Labels texts with a fine-tuned model: a file of any size, a batch after the other.

  python tools/predict.py --model=runs/reviews --input=new.csv --text=review --output=labelled.tsv
  python tools/predict.py --model=runs/mrpc --input=new.jsonl --text=a --pair=b --output=out.tsv

The input ends in .tsv, .csv, .jsonl or .parquet, or is tfds:NAME:SPLIT. The output has a line for
each of its records: id, prediction, and the probability of every label, separated by tabs. It
appears when it is whole.
"""

import itertools
import os
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

_MODEL = flags.DEFINE_string("model", None, "Anything that albert.load takes.", required=True)
_INPUT = flags.DEFINE_string("input", None, "Texts to label.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Where the labels are written.", required=True)
_TEXT = flags.DEFINE_string("text", "text", "Column of the text.")
_PAIR = flags.DEFINE_string("pair", "", "Column of the second text, for models of pairs.")
_ID = flags.DEFINE_string("id", "", "Column of an id. Default: the number of the record.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Texts computed at once.", lower_bound=1)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "SentencePiece .model file. Default: the one beside the model."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "Of activations."
)
# Records that are read before they are sorted by length: the more, the less padding.
_AT_ONCE = 64


def main() -> None:
    import tqdm

    import albert
    from albert.data.labelled.tables import records, table_problem
    from albert.data.sources.base import SourceError
    from albert.runtime.fields import ConfigError
    from albert.runtime.signals import StopSignals
    from albert.tasks.classification import example_of, prediction_table

    problems = []
    if problem := table_problem(_INPUT.value):
        problems.append(f"--input: {_INPUT.value} {problem}")
    output = Path(_OUTPUT.value).expanduser()
    if output.exists():
        problems.append(f"--output: {output} is there already; choose another name or remove it")
    if not output.absolute().parent.is_dir():
        problems.append(f"--output: there is no folder {output.absolute().parent}")
    if problems:
        raise ConfigError(problems)
    model = albert.load(_MODEL.value, dtype=_DTYPE.value, tokenizer=_TOKENIZER.value)
    if "classify" not in model.abilities:
        raise ConfigError(
            [
                f"--model: {_MODEL.value} has no classifier of texts, it can "
                f"{', '.join(model.abilities)}; fine-tune it first"
            ]
        )
    if model.tokenizer is None:
        raise ConfigError(
            [f"--model: there is no vocabulary beside {_MODEL.value}; name it with --tokenizer"]
        )
    examples = (
        example_of(record, where, number, _TEXT.value, _PAIR.value, _ID.value)
        for number, (where, record) in enumerate(records(_INPUT.value))
    )
    temporary = output.with_name(f".{output.name}.unfinished")
    try:
        with (
            StopSignals() as stop,
            stop.immediately(),  # and nothing half-written stays
            open(temporary, "w", encoding="utf-8") as file,
            tqdm.tqdm(unit=" texts") as progress,
        ):
            header = True
            while chunk := list(itertools.islice(examples, _AT_ONCE * _BATCH.value)):
                logits = model.classifier_logits(
                    [example.text for example in chunk],
                    [example.pair for example in chunk],
                    _BATCH.value,
                )
                kind = model.heads["classifier"].get("kind", "classes")
                ids = [example.id for example in chunk]
                lines = iter(prediction_table(kind, model.label_names, ids, logits))
                if not header:
                    next(lines)
                header = False
                file.writelines(f"{line}\n" for line in lines)
                progress.update(len(chunk))
            count = int(progress.n)
        if not count:
            raise SourceError(f"{_INPUT.value} holds no records")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{count} texts are labelled in {output}.")


if __name__ == "__main__":
    cli.run(main)
