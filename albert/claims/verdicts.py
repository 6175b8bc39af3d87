"""What is commonly said of ALBERT, judged by the numbers that were measured."""

import dataclasses
import statistics
from collections.abc import Sequence

# A ratio ALBERT / BERT at or below the first is "true", at or below the second "partly".
CLEARLY, SLIGHTLY = 0.8, 0.97
# A difference between runs counts from so many standard deviations (of both models together) on.
DEVIATIONS = 2.0
NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Verdict:
    claim: str
    verdict: str  # true, partly, false or not measured
    number: str  # what it rests on


def by_ratio(claim: str, what: str, albert: float | None, bert: float | None) -> Verdict:
    """Judges that ALBERT needs less of something; None: it was not measured."""
    if albert is None or bert is None:
        return Verdict(claim, NOT_MEASURED, what)
    ratio = albert / bert
    verdict = "true" if ratio <= CLEARLY else "partly" if ratio <= SLIGHTLY else "false"
    return Verdict(claim, verdict, f"{what}: {ratio:.3f} of BERT's")


def by_runs(claim: str, what: str, albert: Sequence[float], bert: Sequence[float]) -> Verdict:
    """Judges that a figure is higher in ALBERT's runs than in BERT's; two runs each at least."""
    if len(albert) < 2 or len(bert) < 2:
        return Verdict(claim, NOT_MEASURED, f"{what}: needs two runs of each model")
    difference = statistics.fmean(albert) - statistics.fmean(bert)
    spread = (statistics.variance(albert) + statistics.variance(bert)) ** 0.5
    verdict = "false"
    if difference > 0:
        verdict = "true" if difference > DEVIATIONS * spread else "partly"
    return Verdict(
        claim, verdict,
        f"{what}: {statistics.fmean(albert):.3f} against {statistics.fmean(bert):.3f}, difference "
        f"{difference:+.3f}, both spreads together {spread:.3f}",
    )  # fmt: skip


def by_gaps(claim: str, albert: Sequence[float], bert: Sequence[float]) -> Verdict:
    """Judges that ALBERT's held-out loss is less above its training loss than BERT's.

    Where neither's is above it at all, nothing was learned by heart and nothing is to be judged.
    """
    if albert and bert and max(statistics.fmean(albert), statistics.fmean(bert)) <= 0:
        gaps = f"{statistics.fmean(albert):+.3f} and {statistics.fmean(bert):+.3f}"
        return Verdict(
            claim, NOT_MEASURED, f"neither overfits: held-out less training loss {gaps} nats"
        )
    # Higher is what is judged, so BERT's gap is on ALBERT's side of the comparison.
    what = "held-out less training loss at the end, BERT's against ALBERT's"
    return by_runs(claim, what, bert, albert)
