"""Products with weights and rows of tables, in each of the ways in which weights are kept: float32
or int8.

Here x is [N, K], N being the tokens of a call, and weights come as a stack [S, K, M], one matrix
for each set.
"""

import numpy as np

from albert.export.litert.graph import Graph, Tensor
from albert.export.quantised import quantised

# Which entry of a stack to take, int32 []; None where there is one entry.
Pick = Tensor | None
_ONE = np.ones(1, np.float32)  # the scale of what is multiplied by its own behind


def entries(stack: np.ndarray) -> np.ndarray:
    """A stack of one entry without its first axis."""
    return stack[0] if len(stack) == 1 else stack


def plus(g: Graph, x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else g.both("ADD", x, bias)


def with_bias(g: Graph, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, K] times a constant [M, K], and a bias [M] if any: [N, M]."""
    if bias is None or bias.is_constant:
        return g.product(x, weight, bias)
    return plus(g, g.product(x, weight, None), bias)


def by_picked(g: Graph, x: Tensor, weight: Tensor) -> Tensor:
    """x [N, K] times [M, K] that is no constant: [N, M]. XNNPACK takes such a product only as one
    of batches; FULLY_CONNECTED would be left to a kernel of half the speed."""
    rows, columns = x.shape[0], weight.shape[0]
    turned = g.reshape(weight, 1, *weight.shape)
    return g.reshape(g.matmul(g.reshape(x, 1, *x.shape), turned, is_turned=True), rows, columns)


class Float32:
    """Weights as they are."""

    def product(
        self, g: Graph, x: Tensor, name: str, stack: np.ndarray, pick: Pick, bias: Tensor | None
    ) -> Tensor:
        """x [N, K] times an entry of [S, K, M], and a bias [M] if any: [N, M]."""
        weight = g.constant(name, entries(np.ascontiguousarray(stack.transpose(0, 2, 1))))
        if pick is None:
            return with_bias(g, x, weight, bias)
        return plus(g, by_picked(g, x, g.entry(weight, pick)), bias)

    def rows(self, g: Graph, ids: Tensor, name: str, table: np.ndarray) -> Tensor:
        """Rows of a table [V, E]: int32 [N] -> [N, E]."""
        return g.rows(g.constant(name, table), ids)

    def scores(self, g: Graph, x: Tensor, name: str, table: np.ndarray, bias: Tensor) -> Tensor:
        """x [N, E] times every row of a table [V, E], and a bias [V]: [N, V]."""
        return g.product(x, g.constant(name, table), bias)


class Int8:
    """Weights as int8 with a scale for each column, of tables for each row; activations are rounded
    as the product is computed, where the weight is the same at every depth."""

    def product(
        self, g: Graph, x: Tensor, name: str, stack: np.ndarray, pick: Pick, bias: Tensor | None
    ) -> Tensor:
        whole, scale = quantised(stack.transpose(0, 2, 1), 2)
        if pick is None:
            return with_bias(g, x, g.constant(name, whole[0], scale[0]), bias)
        # A tensor has one set of scales, whichever entry it holds: they come behind the product.
        weight = g("CAST", g.entry(g.constant(name, whole), pick), dtype=np.float32)
        scales = g.entry(g.constant(f"{name}/scale", scale), pick)
        return plus(g, g.both("MUL", by_picked(g, x, weight), scales), bias)

    def rows(self, g: Graph, ids: Tensor, name: str, table: np.ndarray) -> Tensor:
        # A tensor's own scales come with zero points of 8 bytes each, and not every runtime has
        # them for rows that are looked up.
        whole, scale = quantised(table, 1)
        scales = g.constant(f"{name}/scale", scale[:, None])
        return g.both("MUL", g.rows(g.constant(name, whole, _ONE), ids), g.rows(scales, ids))

    def scores(self, g: Graph, x: Tensor, name: str, table: np.ndarray, bias: Tensor) -> Tensor:
        return g.product(x, g.constant(name, *quantised(table, 1)), bias)


Products = Float32 | Int8
