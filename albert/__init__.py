"""ALBERT pretraining in JAX and Flax: from raw text to a checkpoint.

  import albert
  model = albert.load("runs/base")
  model.fill_mask("Paris is the [MASK] of France.")

Importing the package costs nothing: it imports neither jax nor any other heavy library.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from albert.inference import Pretrained
    from albert.train.config import Config

__version__ = "0.2.0"


def load(
    path: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    dtype: str = "float32",
    depth: int | None = None,
) -> "Pretrained":
    """Loads a model of this project, of Hugging Face or of the released program.

    Args:
      path: a workdir, one checkpoint of it (`workdir/checkpoints/STEP`), a Hugging Face folder,
        or the prefix or folder of a TensorFlow checkpoint with its `albert_config.json`.
      tokenizer: a SentencePiece .model file, where none is beside the weights.
      dtype: of activations: float32, bfloat16 or float16. Parameters are float32.
      depth: end behind so many layers: of a model that was trained with `model.least_depth`, which
        is as good there as it can be. None: all.

    Warns where there is a vocabulary that cannot be used, or rows of the model that are no piece of
    it; the model is loaded all the same.

    Raises:
      CheckpointError: there is no model, it is damaged, its parts do not fit each other, or it
        cannot end behind so many layers.
    """
    from albert.inference import load

    return load(path, tokenizer, dtype, depth)


def config(path: str | os.PathLike, /, **overrides) -> "Config":
    """A config file with some fields changed, checked: what train.py gets from its flags.

      albert.config("configs/base.py:tiny", **{"train.num_steps": 10, "seed": 1})
      albert.config("configs/quickstart.py", train={"num_steps": 10}, seed=1)

    Args:
      path: a config file, with its argument behind a colon if it has one; configs/NAME.py is found
        in any working folder once the project is installed.
      overrides: fields by their names, "SECTION.FIELD", or sections as dicts. Lists become tuples.

    Raises:
      ConfigError: there is no such file or field, or a value cannot be used; lists all of them.
    """
    from albert.train.config_files import read_config

    return read_config(path, overrides)
