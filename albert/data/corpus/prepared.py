"""Corpora that were prepared from a text which is not there any more.

What is prepared is enough to train, resume and evaluate: the text may be deleted, or stay on
another machine. Then the corpus is found by the name of the source and all options. Never
imports jax.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from albert.data.corpus.reader import Corpus, differences
from albert.data.sources.base import Source, SourceError
from albert.data.sources.parse import parse_source
from albert.data.tokenizer import Tokenizer
from albert.runtime.paths import modified

# Part of every fingerprint: raise it when the folder's contents change meaning, and when parts are
# cut elsewhere, since those of an unfinished folder are gone on with.
FORMAT = 3


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """Stands for a source whose text is gone, and gives the corpora that were made of it."""

    spec: str
    problem: str  # why the text cannot be read
    # The one that was used last comes first; on a bucket, that was made last.
    corpora: tuple[Corpus, ...]

    def identities(self) -> list[dict]:
        """What the text may have been, the last first; see `Source.identity`."""
        return [corpus.manifest["source"] for corpus in self.corpora]

    def corpus(self, tokenizer: Tokenizer, language: str, max_documents: int) -> Corpus:
        """The corpus with these options; raises SourceError when there is none."""
        changed: list[str] = []
        for corpus in self.corpora:
            before = corpus.manifest
            now = {
                "format": FORMAT,
                "source": before["source"],
                "tokenizer": tokenizer.fingerprint,
                "lower_case": tokenizer.lower_case,
                "strip_accents": tokenizer.strip_accents,
                "max_documents": max_documents,
                # Of any version of the splitter: it cannot be split again.
                "splitter": before["splitter"] and [language, before["splitter"][1]],
            }
            differing = differences(before, now)
            if not differing:
                print(
                    f"{self.spec}: the text is gone ({self.problem.rstrip('.')}); the corpus that "
                    f"was prepared from it is used, {corpus.path}.",
                    file=sys.stderr,
                    flush=True,
                )
                return corpus
            changed = changed or differing
        raise SourceError(
            f"{self.problem} It was prepared before, in {self.corpora[0].path}, for other "
            f"{', '.join(changed)}: go back to that, or bring the text back."
        )


def open_source(
    spec: str, text_field: str, folder: Path, wanted: Sequence[str] = ()
) -> Source | PreparedText:
    """The source of a spec, or what was prepared from it in `folder` if its text is gone.

    Tells of files that are not read. Of several corpora that were made of the source as it was at
    different times, those with the `wanted` fingerprints go first, then the one used last.

    Raises SourceError when there is neither.
    """
    try:
        source = parse_source(spec, text_field, folder)
        source.identity()  # a dataset may be gone as a file may
    except SourceError as error:
        corpora = prepared_corpora(spec, text_field, folder, wanted)
        if not corpora:
            raise
        return PreparedText(spec, str(error), tuple(corpora))
    if source.left_out:
        print(f"{spec}: left out {', '.join(source.left_out)}.", file=sys.stderr, flush=True)
    return source


def prepared_corpora(
    spec: str, text_field: str, folder: Path, wanted: Sequence[str] = ()
) -> list[Corpus]:
    """The corpora in `folder` that were made of a source, with any options."""
    corpora = []
    for path in sorted(folder.glob("corpus-*/corpus.json"), key=lambda p: -modified(p)):
        manifest = json.loads(path.read_text())
        source = manifest["source"]
        if manifest["spec"] == spec and source.get("text_field", text_field) == text_field:
            corpora.append(Corpus(path.parent))
    return sorted(corpora, key=lambda corpus: corpus.fingerprint not in wanted)
