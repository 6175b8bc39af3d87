"""Few shapes for arrays of many: what is padded to a size of these is compiled for it once.

Never imports jax.
"""


def bucket(size: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...; never more than half is added."""
    power = 1 << max(size - 1, 0).bit_length()
    return power // 4 * 3 if power >= 4 and size <= power // 4 * 3 else power
