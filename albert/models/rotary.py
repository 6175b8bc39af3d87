"""Rotary positions: queries and keys are turned by angles that grow with the position, so that what
a token takes from another depends on how far apart they are.

Source: Su et al. 2021, arXiv 2104.09864, section 3.2; numbers i and i + D/2 of a head are a pair,
as in GPT-NeoX.
"""

import jax
import jax.numpy as jnp

BASE = 10000.0


def turns(positions: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the angles, position * BASE ** (-2 i / D) for pair i.

    int [..., L] -> float32 [..., L, 1, D/2] each.

    Args:
      positions: of the tokens, from 0.
      width: D, of a head; even.
    """
    rates = BASE ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions.astype(jnp.float32)[..., None, None] * rates
    return jnp.cos(angles), jnp.sin(angles)


def turned(x: jax.Array, by: tuple[jax.Array, jax.Array]) -> jax.Array:
    """[B, L, A, D] turned by what `turns` gave; in float32, and back."""
    cos, sin = by
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
