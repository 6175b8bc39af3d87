"""Shows what the text of a config is like before a run learns from it.

  python tools/corpus_stats.py --config=configs/quickstart.py
  python tools/corpus_stats.py --config=configs/base.py --output=stats \\
      --config.data.train_sources="('wiki/',)" --config.data.tokenizer=30k-clean.model

Give the config and overrides of the run. Prepares the text as train.py does, or finds it prepared,
and reads it once. For every training source and the held-out text: how much there is, how long
sentences and documents are, documents that stand there twice, held-out documents that are also
learned from, the share of padding without and with data.packing, and which pieces occur. The last
line is all of it as one JSON object. With --output=PREFIX that is also PREFIX.json, and
PREFIX.png shows it.

Documents are copies when all of their pieces are equal; near copies are not found. The padding is
that of one epoch: in a small text the draws of data.short_seq_prob move it by a lot.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from albert import cli

if TYPE_CHECKING:
    from albert.data.pretraining.statistics import Lengths, Report, Text

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string(
    "output", None, "Also write PREFIX.json and PREFIX.png. Default: print only."
)
_COLUMNS = 4  # texts beside each other in a table
_LABEL, _VALUE = 36, 15  # widths
_FEW = 200  # sentences or documents: fewer are drawn in bins of a whole doubling


def main() -> None:
    from albert.data.pretraining.statistics import make_report
    from albert.programs.rows import as_begun
    from albert.tasks.pretraining import Pretraining

    config, start = as_begun(cli.checked(_CONFIG))
    data = Pretraining.read(config, start)
    report = make_report(
        data.train.plans, data.valid.plans, data.tokenizer, not config.data.valid_sources
    )
    print(in_words(report))
    line = json.dumps(dataclasses.asdict(report))
    if _OUTPUT.value:
        prefix = Path(_OUTPUT.value).expanduser()
        prefix.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{prefix}.json").write_text(line + "\n")
        draw(report, f"{prefix}.png")
        print(f"Written: {prefix}.json and {prefix}.png\n")
    print(line)


def in_words(report: "Report") -> str:
    """The report as tables, and its verdict on the held-out text."""
    texts = list(enumerate(report.texts, 1))
    parts = ["\n".join(f"[{number}] {text.split}: {text.spec}" for number, text in texts)]
    for first in range(0, len(texts), _COLUMNS):
        parts.append(_table(texts[first : first + _COLUMNS], report))
    parts += [_most_frequent(report), verdict(report)]
    return "\n\n".join(parts) + "\n"


def verdict(report: "Report") -> str:
    """Whether training text stands in the held-out text."""
    total = report.held_out_documents
    if report.leaked:
        return (
            f"Leakage: {report.leaked:,} of the {total:,} held-out documents "
            f"({report.leaked / total:.2%}) also stand in the training text. Held-out figures "
            "will look better than they are."
        )
    why = ": copies of a document are on the same side" if report.split_by_hash else ""
    return f"Leakage: none. Of {total:,} held-out documents none stands in the training text{why}."


def _table(texts: Sequence[tuple[int, "Text"]], report: "Report") -> str:
    def row(label: str, figure: Callable[["Text"], str]) -> str:
        cells = "".join(f"{figure(text):>{_VALUE}}" for _, text in texts)
        return f"{label:<{_LABEL}}{cells}"

    def share(count: int, text: "Text") -> str:
        return f"{count / text.documents:.2%}"

    lines = [
        " " * _LABEL + "".join(f"{f'[{n}] {text.split}':>{_VALUE}}" for n, text in texts),
        row("documents", lambda t: f"{t.documents:,}"),
        row("sentences", lambda t: f"{t.sentences:,}"),
        row("tokens", lambda t: f"{t.tokens:,}"),
        row(
            "characters per token, whole source", lambda t: _or_dash(t.characters_per_token, ".2f")
        ),
        row("records of the source", lambda t: _or_dash(t.records, ",")),
        row("  left out as bad", lambda t: _or_dash(t.bad_records, ",")),
        row("tokens that are <unk>", lambda t: f"{t.unknown:.3%}"),
        row("characters that are, whole source", lambda t: _or_dash(t.unknown_characters, ".3%")),
        row("tokens that begin a word", lambda t: f"{t.word_starts:.1%}"),
        row("tokens per word", lambda t: f"{1 / t.word_starts:.2f}" if t.word_starts else "-"),
        row("pieces that never occur", lambda t: f"{t.pieces.never:,}"),
        "",
        row("documents that repeat one before", lambda t: share(t.repeated, t)),
        row("  also in another text of the split", lambda t: share(t.in_other_sources, t)),
        row(
            "  also in the training text",
            lambda t: "-" if t.in_train is None else share(t.in_train, t),
        ),
        "",
        f"rows of {report.seq_length} tokens",
        row("  tokens that stand in no row", lambda t: f"{t.dropped:.1%}"),
        row("  one example to a row", lambda t: f"{t.examples:,}"),
        row("    padding", lambda t: f"{t.padding:.1%}"),
        row(f"  up to {report.packing} examples to a row", lambda t: f"{t.packed_rows:,}"),
        row("    padding", lambda t: f"{t.packed_padding:.1%}"),
    ]
    for noun in ("sentence", "document"):
        lengths = [getattr(text, f"{noun}_lengths") for _, text in texts]
        lines += ["", f"length of a {noun} in tokens", *_lengths_table(lengths)]
    return "\n".join(lines)


def _lengths_table(texts: Sequence["Lengths"]) -> Iterable[str]:
    def row(label: str, cells: Iterable[str]) -> str:
        return f"  {label:<{_LABEL - 2}}" + "".join(f"{cell:>{_VALUE}}" for cell in cells)

    yield row("mean", (f"{lengths.mean:,.1f}" for lengths in texts))
    for percent in texts[0].quantiles:
        label = "median" if percent == "50" else f"{percent} % are not longer than"
        yield row(label, (f"{lengths.quantiles[percent]:,}" for lengths in texts))
    yield row("longest", (f"{lengths.max:,}" for lengths in texts))
    yield "  share by length"
    shares = [_by_doubling(lengths) for lengths in texts]
    for power in sorted(set().union(*shares)):
        label = "  1" if power == 0 else f"  {2**power:,} to {2 ** (power + 1) - 1:,}"
        yield row(label, (f"{s[power]:.1%}" if power in s else "-" for s in shares))


def _by_doubling(lengths: "Lengths") -> dict[int, float]:
    """Share of the lengths from 2^i to 2^(i + 1) - 1 by i; the bins have an edge at each."""
    total = sum(lengths.counts)
    shares: dict[int, float] = {}
    for edge, count in zip(lengths.edges, lengths.counts, strict=False):
        if count:
            power = edge.bit_length() - 1
            shares[power] = shares.get(power, 0.0) + count / total
    return shares


def _most_frequent(report: "Report") -> str:
    pieces = report.train_pieces
    tokens = sum(text.tokens for text in report.texts if text.split == "train")
    cells = [
        f"{rank:>3} {piece:<14}{count:>13,} {count / tokens:>6.2%}"
        for rank, (piece, count) in enumerate(pieces.most_frequent, 1)
    ]
    height = -(-len(cells) // 2)
    lines = ["    ".join(cells[i::height]) for i in range(height)]
    header = (
        f"Most frequent of the {report.vocab_size:,} pieces in the training text; "
        f"{pieces.never:,} never occur."
    )
    return "\n".join([header, *lines])


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def draw(report: "Report", path: str) -> None:
    """Writes a picture of lengths, frequencies and padding."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, axes = plt.subplots(2, 2, figsize=(12, 9 + len(report.texts) / 8), layout="constrained")
    colors = [plt.get_cmap("tab10")(i % 10) for i in range(len(report.texts))]
    styles = ["-" if text.split == "train" else "--" for text in report.texts]
    names = [f"[{i}] {t.split}: {_short(t.spec)}" for i, t in enumerate(report.texts, 1)]

    for axis, noun in ((axes[0, 0], "sentence"), (axes[0, 1], "document")):
        left = float("inf")
        for text, color, style in zip(report.texts, colors, styles, strict=True):
            edges, heights = _density(getattr(text, f"{noun}_lengths"))
            axis.stairs(heights, edges, color=color, linestyle=style, linewidth=1.6)
            left = min(left, edges[0])
        axis.set_xscale("log", base=2)
        axis.axvline(report.seq_length, color="0.5", linewidth=1, linestyle=":")
        axis.set_xlim(left=left / 1.2)
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_xlabel(f"length of a {noun} (tokens)")
        axis.set_ylabel(f"share of {noun}s per doubling of length")
        axis.set_title(f"{noun.capitalize()} lengths")
        axis.annotate(
            f"a row: {report.seq_length}",
            (report.seq_length, 0.98),
            (-2, 0),
            rotation=90,
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color="0.4",
            va="top",
            ha="right",
        )

    axis = axes[1, 0]
    for text, name, color, style in zip(report.texts, names, colors, styles, strict=True):
        shares = [count / text.tokens for count in text.pieces.counts]
        axis.plot(text.pieces.ranks, shares, style, color=color, linewidth=1.6, label=name)
    figure.legend(loc="outside lower center", ncols=min(len(names), 2))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("rank of the piece (1: the most frequent)")
    axis.set_ylabel("share of the tokens")
    axis.set_title(f"Frequency of the {report.vocab_size:,} pieces")

    _draw_padding(axes[1, 1], report, colors)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_padding(axis: Any, report: "Report", colors: list) -> None:
    from matplotlib.ticker import PercentFormatter

    texts = report.texts
    places = range(len(texts))
    rotation = 0 if len(texts) <= 6 else 90
    for shift, alpha, shares in (
        (-0.2, 1.0, [text.padding for text in texts]),
        (0.2, 0.45, [text.packed_padding for text in texts]),
    ):
        bars = axis.bar([p + shift for p in places], shares, 0.38, color=colors, alpha=alpha)
        axis.bar_label(
            bars, [f"{share:.1%}" for share in shares], padding=2, fontsize=9, rotation=rotation
        )
    axis.set_xticks(places, [f"[{number}]" for number in range(1, len(texts) + 1)])
    axis.margins(y=0.15)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xlabel(
        f"text (full: one example to a row, pale: up to {report.packing} examples to a row)"
    )
    axis.set_ylabel("positions that hold no token")
    axis.set_title(f"Padding in rows of {report.seq_length} tokens")


def _density(lengths: "Lengths") -> tuple[list[float], list[float]]:
    """Edges from the shortest on, and the share per doubling of the length in each bin.

    The bins of short lengths differ in width, so plain shares would jump up and down.
    """
    total = sum(lengths.counts)
    shares = _by_doubling(lengths)
    first, last = min(shares), max(shares)
    if total < _FEW:
        bins = [(shares.get(i, 0.0), 2**i, 2 ** (i + 1)) for i in range(first, last + 1)]
    else:
        begin = next(i for i, count in enumerate(lengths.counts) if count)
        ends = zip(lengths.counts, lengths.edges, lengths.edges[1:], strict=False)
        bins = [(count / total, low, high) for count, low, high in ends][begin:]
    edges = [low - 0.5 for _, low, _ in bins] + [bins[-1][2] - 0.5]
    heights = [
        share / math.log2(high / low)
        for (share, _, _), low, high in zip(bins, edges, edges[1:], strict=False)
    ]
    return edges, heights


def _short(spec: str) -> str:
    return spec if len(spec) <= 40 else f"...{spec[-37:]}"


if __name__ == "__main__":
    cli.run(main)
