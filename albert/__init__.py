"""ALBERT pretraining in JAX and Flax: from raw text to a checkpoint.

Importing the package costs nothing: it imports neither jax nor any other heavy library.
"""

__version__ = "0.1.0"
