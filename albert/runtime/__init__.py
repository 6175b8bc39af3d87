"""What a run of days needs: signals, saving, its log, its identity, one job for a workdir."""


class RunError(RuntimeError):
    """The run cannot go on; says why and what to do."""
