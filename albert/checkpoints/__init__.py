"""Checkpoints of a run: written, verified and read again (store.py)."""


class CheckpointError(RuntimeError):
    """There is no such checkpoint, or it cannot be read."""
