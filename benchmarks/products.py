"""The matrix products of a training step, each alone, in XLA and in PyTorch: what step_time.py
--products times in turn, each framework in its own process."""

import math
from typing import NamedTuple


class Product(NamedTuple):
    name: str
    equation: str  # of an einsum
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # of what is multiplied
    times: int  # in a step

    @property
    def flops(self) -> int:
        """Of one."""
        sizes = {
            letter: size
            for letters, shape in zip(
                self.equation.split("->")[0].split(","), self.shapes, strict=True
            )
            for letter, size in zip(letters, shape, strict=True)
        }
        return 2 * math.prod(sizes.values())


def products_of(config) -> list[Product]:
    """Those of one forward and one backward pass, most operations first; remat is not counted.

    Letters beside those of albert/models/layers.py: T tokens of a row, X and Y what a dense layer
    takes and gives, M what L attends to. Tokens have two axes, as in the step: with one, XLA's
    products over tokens on a CPU in 16 bits are five times slower.
    """
    m, rows, length = config.model, config.train.batch_size, config.data.seq_length
    heads, width = m.num_attention_heads, m.hidden_size // m.num_attention_heads
    h, e = m.hidden_size, m.embedding_size

    def with_gradients(name, equation, a, b, times):
        ends, result = equation.split("->")
        of_a, of_b = ends.split(",")
        sizes = dict(zip(of_a, a, strict=True)) | dict(zip(of_b, b, strict=True))
        c = tuple(sizes[letter] for letter in result)
        return [
            Product(name, equation, (a, b), times),
            Product(f"{name}, gradient of input", f"{result},{of_b}->{of_a}", (c, b), times),
            Product(f"{name}, gradient of other", f"{of_a},{result}->{of_b}", (a, c), times),
        ]

    def dense(name, x, y, times, tokens=length):
        return with_gradients(name, "BTX,XY->BTY", (rows, tokens, x), (x, y), times)

    found = [
        *dense("query, key, value, output", h, h, 4 * m.depth),
        *dense("wide", h, m.intermediate_size, m.depth),
        *dense("narrow", m.intermediate_size, h, m.depth),
        *with_gradients(
            "scores",
            "BLAD,BMAD->BALM",
            (rows, length, heads, width),
            (rows, length, heads, width),
            m.depth,
        ),
        *with_gradients(
            "context",
            "BALM,BMAD->BLAD",
            (rows, heads, length, length),
            (rows, length, heads, width),
            m.depth,
        ),
        *dense("vocabulary", e, m.vocab_size, 1, config.data.max_predictions),
        *(dense("embeddings to layers", e, h, 1) if m.maps_embeddings else []),
    ]
    return sorted(found, key=lambda one: -one.flops * one.times)


def xla_product(config: dict, number: int):
    """A function that runs it once, one that waits, and what there is to tell."""
    import jax
    import jax.numpy as jnp

    from albert.train.config import from_json, with_dtype

    of = with_dtype(from_json(config), None, lambda line: None)
    one = products_of(of)[number]
    keys = jax.random.split(jax.random.key(0))
    dtype = of.model.dtype
    sides = [jax.random.normal(k, s, dtype) for k, s in zip(keys, one.shapes, strict=True)]
    run = jax.jit(
        lambda a, b: jnp.einsum(one.equation, a, b, preferred_element_type=jnp.float32).astype(
            a.dtype
        )
    )
    out = run(*sides)

    def step():
        nonlocal out
        out = run(*sides)

    return step, lambda: jax.block_until_ready(out), {"dtype": of.model.dtype}


def torch_product(config: dict, number: int, dtype: str):
    """The same in PyTorch, in the dtype that XLA took."""
    import os

    import torch

    from albert.train.config import from_json

    one = products_of(from_json(config))[number]
    cuda = torch.cuda.is_available()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if cuda else "cpu"
    sides = [torch.randn(s, dtype=getattr(torch, dtype), device=device) for s in one.shapes]

    def step():
        with torch.no_grad():
            torch.einsum(one.equation, *sides)

    def wait():
        if cuda:
            torch.cuda.synchronize()

    return step, wait, {"dtype": dtype}
