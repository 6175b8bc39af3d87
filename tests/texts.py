"""Made-up text."""

from pathlib import Path

import numpy as np

VOCABULARY = 96
_WORDS = """
    the a river mountain city scientist garden letter winter teacher music engine question answer
    small bright ancient quiet moves writes finds carries watches builds under over beside towards
    slowly often never gladly and but because while stone water light paper history village bridge
    forest wheel number theory market captain island summer voice
""".split()  # noqa: SIM905


def write_text(path: Path, documents: int, seed: int = 0) -> Path:
    """Documents of made-up sentences, one per line, a blank line between documents."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(documents):
        for _ in range(rng.integers(1, 12)):
            words = rng.choice(_WORDS, rng.integers(3, 14))
            lines.append(" ".join(words).capitalize() + rng.choice([".", "?", ", 1920, 7."]))
        lines.append("")
    path.write_text("\n".join(lines))
    return path
