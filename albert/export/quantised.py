"""Weights as int8, as every format that has them keeps them."""

import numpy as np


def quantised(stack: np.ndarray, axis: int, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """int8 like `stack`, and float32 scales without `axis`, along which a scale is shared."""
    most = 2 ** (bits - 1) - 1
    largest = np.abs(stack).max(axis)
    scale = np.where(largest > 0, largest / most, 1).astype(np.float32)
    whole = np.rint(stack / np.expand_dims(scale, axis))
    return np.clip(whole, -most, most).astype(np.int8), scale
