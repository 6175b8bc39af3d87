"""What the logits of a classifier mean. Never imports jax."""

import numpy as np

# What a classifier tells: one of several classes; a number, which is its one logit; or any of
# several labels, each by itself. A choice is one logit for each of several candidates, each a row.
KINDS = ("classes", "number", "several", "choice")


def label_probabilities(kind: str, logits: np.ndarray) -> np.ndarray:
    """What a classifier's logits, [..., labels], are worth: probabilities of classes, which add up
    to 1, or of each of several labels. In NumPy."""
    if kind == "several":
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
