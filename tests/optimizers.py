"""An optimizer's config to change, and the released LAMB in float64."""

import numpy as np

from albert.train.optimizers import OptimizerConfig

LAMB = OptimizerConfig(
    name="lamb",
    learning_rate=0.1,
    schedule="released",
    warmup_steps=2,
    cooldown_steps=None,
    final_learning_rate=None,
    b1=None,
    b2=None,
    eps=None,
    weight_decay=None,
    momentum=None,
    consistent_rms=None,
    clip_norm=0.0,
)


def reference_lamb(p, grads, rate, *, plain):
    """The released update in float64, one tensor, one step after the other."""
    m = v = np.zeros_like(p)
    for k, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (np.sqrt(v) + 1e-6) + (0 if plain else 0.01 * p)
        norms = np.linalg.norm(p), np.linalg.norm(u)
        ratio = 1.0 if plain or 0 in norms else norms[0] / norms[1]
        p = p - rate(k) * ratio * u
    return p
