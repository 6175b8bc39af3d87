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

__version__ = "0.2.0"


def load(
    path: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    dtype: str = "float32",
) -> "Pretrained":
    """Loads a model of this project, of Hugging Face or of the released program.

    Args:
      path: a workdir, one checkpoint of it (`workdir/checkpoints/STEP`), a Hugging Face folder,
        or the prefix or folder of a TensorFlow checkpoint with its `albert_config.json`.
      tokenizer: a SentencePiece .model file, where none is beside the weights.
      dtype: of activations: float32, bfloat16 or float16. Parameters are float32.

    Raises:
      CheckpointError: there is no model, it is damaged, or its parts do not fit each other.
    """
    from albert.inference import load

    return load(path, tokenizer, dtype)
