"""Where a run is, beside its arrays."""

import dataclasses

KEY = "progress"  # of a checkpoint's description


@dataclasses.dataclass
class Progress:
    """What a checkpoint says of the moment when it was saved, so that nothing is logged twice or
    left out when the run is resumed.

    Attributes:
      evaluated: evaluation -> figures of the state as it is, which are logged already.
      unlogged: metrics of the steps that no line of the log tells of yet.
    """

    evaluated: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    unlogged: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def as_json(self) -> dict:
        """A copy that does not change while it is being written."""
        return {KEY: {"evaluated": dict(self.evaluated), "unlogged": list(self.unlogged)}}

    @classmethod
    def from_json(cls, description: dict) -> "Progress":
        """That of a checkpoint's description."""
        return cls(**description[KEY])
