"""The longest common subsequence of a text and of what its pieces spell, in a band.

Source: `_lcs_match` in `squad_utils.py`, google-research/albert: which of several equally long ones
it finds follows from the order of its comparisons, which is kept. Compiled by Numba.
"""

import numpy as np

from albert.data.compiled import compiled

# Choices: 0 from above, 1 from the left, 2 a match, 3 none: the end of the way back.


@compiled
def match(ours, theirs, distance):
    """Partners of `theirs` in `ours`, both int64 characters; -1 in `ours` matches nothing.

    Characters i of ours and j of theirs may match where i - distance <= j < i + distance.

    Returns ([len(theirs)] -> place in ours, or -1; length of the subsequence).
    """
    n, m = len(ours), len(theirs)
    width = 2 * distance
    # Row i holds the columns i - distance to i + distance - 1; outside of the band all is 0.
    choice = np.full((n, width), 3, np.uint8)
    before = np.zeros(width + 1, np.int32)
    for i in range(n):
        now = np.zeros(width + 1, np.int32)
        for k in range(width):
            j = i - distance + k
            if j < 0 or j >= m:
                continue
            best = 0
            if i > 0:
                choice[i, k] = 0
                best = before[k + 1]  # the same column in the row above
            if j > 0 and k > 0 and now[k - 1] > best:
                choice[i, k] = 1
                best = now[k - 1]
            diagonal = before[k] if i > 0 and j > 0 else 0
            if ours[i] == theirs[j] and diagonal + 1 > best:
                choice[i, k] = 2
                best = diagonal + 1
            now[k] = best
        before = now
    partners = np.full(m, -1, np.int64)
    i, j = n - 1, m - 1
    k = j - i + distance
    length = before[k] if 0 <= k < width else 0
    while i >= 0 and j >= 0:
        k = j - i + distance
        if k < 0 or k >= width or choice[i, k] == 3:
            break
        if choice[i, k] == 2:
            partners[j] = i
            i, j = i - 1, j - 1
        elif choice[i, k] == 1:
            j -= 1
        else:
            i -= 1
    return partners, length
