"""What a run of pretraining reads, for programs that make it or look at it and do not train."""

from albert.interop.weights import Weights
from albert.runtime.fields import ConfigError
from albert.train.config import Config
from albert.train.init_from import read_start


def as_begun(config: Config) -> tuple[Config, Weights | None]:
    """The config as a run begins with it, and the model of `config.init_from`, if one is named:
    its vocabulary and, with `config.init_model`, its sizes are those of the rows.

    Raises:
      ConfigError: the task is not pretraining; or as `read_start`.
      CheckpointError: as `read_start`.
    """
    if config.task != "pretraining":
        raise ConfigError(
            [
                f"task is {config.task!r}; this tool is for pretraining. What {config.task} reads, "
                "train.py prepares when it begins, and finds again"
            ]
        )
    return read_start(config) if config.init_from else (config, None)
