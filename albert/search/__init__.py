"""Sentences found by what they mean: an index of their vectors on disk (`index`), filled with what
sources of text hold (`sentences`). docs/search.md says how it is used. Never imports jax."""


class SearchError(RuntimeError):
    """There is no such index, it is damaged, or it is of another model."""
