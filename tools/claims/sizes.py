"""The same training step at other sizes, and the largest batch of it that fits."""

import dataclasses

from albert.train.config import Config


def bert_of(config: Config) -> Config:
    """The same shape as BERT has it: nothing shared, E = H."""
    model = dataclasses.replace(
        config.model,
        sharing="none",
        embedding_size=config.model.hidden_size,
        per_layer_norm=False,
        lora_rank=0,
    )
    return dataclasses.replace(config, model=model)


def resized(config: Config, rows: int, length: int, predictions: int, **model) -> Config:
    """The same config with so many rows of so many tokens and masked positions."""
    positions = max(length, config.model.max_position_embeddings)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, max_position_embeddings=positions, **model),
        data=dataclasses.replace(config.data, seq_length=length, max_predictions=predictions),
        train=dataclasses.replace(config.train, batch_size=rows, accumulation=1, microbatch=0),
    )


def largest_that_fits(fits, guess: int, limit: int = 4096, halvings: int = 2) -> int:
    """The largest n for which `fits(n)` is true, to within a fourth of the power of two below it.

    Starts from a guess and asks as few times as possible, since each time is a compilation: first
    for powers of two, then `halvings` times between the last that fits and the next. 0 when 1 is
    too large.
    """
    n = guess
    if fits(n):
        while 2 * n <= limit and fits(2 * n):
            n *= 2
        if 2 * n > limit:
            return n
    else:
        while n > 1:
            n //= 2
            if fits(n):
                break
        else:
            return 0
    step = n // 2
    for _ in range(halvings):
        if step and fits(n + step):
            n += step
        step //= 2
    return n
