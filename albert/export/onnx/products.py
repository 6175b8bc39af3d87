"""Products with weights, in each of the ways in which weights are kept: float32, int8 or int4.

Here x is [B, L, K] or [B, K], and weights come as a stack [S, K, N], one matrix for each set.
"""

import dataclasses

import numpy as np
from onnx import numpy_helper

from albert.export.onnx.graph import Graph
from albert.export.quantised import quantised

# The middle of uint8: what stands for 0 where activations have a scale for each token.
_ZERO_POINT = numpy_helper.from_array(np.array([128], np.uint8))
# Which entry of a stack to take: the name of an int64 number; None where there is one entry.
Pick = str | None


def picked(graph: Graph, stack: str, pick: Pick) -> str:
    """An entry of a constant, or, where there is one, the constant itself."""
    return stack if pick is None else graph("Gather", stack, pick, axis=0)


def entries(stack: np.ndarray) -> np.ndarray:
    """A stack of one entry without its first axis."""
    return stack[0] if len(stack) == 1 else stack


class Float32:
    """x @ w as it is."""

    opset = 17
    fused = False

    def product(self, graph: Graph, x: str, name: str, stack: np.ndarray, pick: Pick) -> str:
        weight = graph.constant(name, entries(stack.astype(np.float32)))
        return graph("MatMul", x, picked(graph, weight, pick))

    def rows(self, graph: Graph, ids: str, name: str, table: np.ndarray) -> str:
        """Rows [V, E] of the word table."""
        return graph("Gather", graph.constant(name, table.astype(np.float32)), ids, axis=0)

    def scores(self, graph: Graph, x: str, name: str, table: np.ndarray) -> str:
        """x [B, L, E] times every row of the word table [V, E]: [B, L, V]."""
        vocab, width = table.shape
        table_name = graph.constant(name, table.astype(np.float32))
        flat = graph("Reshape", x, graph.integers(-1, width))
        # Gemm reads the table as it lies; MatMul would need a second, turned one.
        logits = graph("Gemm", flat, table_name, transB=1)
        shape = graph("Concat", leading(graph, x), graph.integers(vocab), axis=0)
        return graph("Reshape", logits, shape)


def leading(graph: Graph, x: str) -> str:
    """The shape of x without its last axis, int64."""
    return graph(
        "Slice", graph("Shape", x), graph.integers(0), graph.integers(-1), graph.integers(0)
    )


@dataclasses.dataclass(frozen=True)
class Int8:
    """Weights as int8 with a scale for each column, activations as uint8 with a scale for each
    tensor (found as the graph runs) or for each token.

    Signed weights times unsigned activations: what x86 with VNNI and ARM multiply fast. Without
    VNNI x86 adds two such products in 16 bits and cuts off what is over: 2 x 255 x 127 does not
    fit, 2 x 255 x 63 does, so that weights of 7 bits are right everywhere.
    """

    bits: int = 7  # of weights, of which one is the sign
    per_token: bool = False
    fused = False

    @property
    def opset(self) -> int:
        return 18 if self.per_token else 17  # ReduceMax takes its axes as an input from 18 on

    def product(self, graph: Graph, x: str, name: str, stack: np.ndarray, pick: Pick) -> str:
        whole, scale = quantised(stack, 1, self.bits)
        weight = picked(graph, graph.constant(name, entries(whole)), pick)
        scales = picked(graph, graph.constant(f"{name}/scale", entries(scale)), pick)
        return self._integer_product(graph, x, weight, scales, stack.shape[1])

    def _integer_product(self, graph: Graph, x: str, weight: str, scales: str, width: int) -> str:
        if not self.per_token:
            rounded, scale, zero = graph("DynamicQuantizeLinear", x, outputs=3)
            product = graph("MatMulInteger", rounded, weight, zero)
            # In this order ONNX Runtime makes one operator of these four.
            product = graph("Cast", product, to=1)
            return graph("Mul", product, graph("Mul", scale, scales))
        largest = graph("ReduceMax", graph("Abs", x), graph.integers(-1), keepdims=1)
        scale = graph("Div", graph("Max", largest, graph.number(1e-30)), graph.number(127.0))
        flat_scale = graph("Reshape", scale, graph.integers(-1))
        zeros = graph("ConstantOfShape", graph("Shape", flat_scale), value=_ZERO_POINT)
        flat = graph("Reshape", x, graph.integers(-1, width))
        rounded = graph("QuantizeLinear", flat, flat_scale, zeros, axis=0)
        rounded = graph("Reshape", rounded, graph("Shape", x))
        zero = graph.constant("zero_point", np.uint8(128))
        product = graph("Cast", graph("MatMulInteger", rounded, weight, zero), to=1)
        return graph("Mul", graph("Mul", product, scale), scales)

    def rows(self, graph: Graph, ids: str, name: str, table: np.ndarray) -> str:
        whole, scale = quantised(table, 1, self.bits)
        rows = graph("Gather", graph.constant(name, whole), ids, axis=0)
        # [V, 1], so that what is looked up stands behind its rows.
        scales = graph.constant(f"{name}/scale", scale[:, None])
        return graph("Mul", graph("Cast", rows, to=1), graph("Gather", scales, ids, axis=0))

    def scores(self, graph: Graph, x: str, name: str, table: np.ndarray) -> str:
        whole, scale = quantised(table, 1, self.bits)
        turned = graph("Transpose", graph.constant(name, whole), perm=[1, 0])
        scales = graph(
            "Reshape", graph.constant(f"{name}/scale", scale[:, None]), graph.integers(-1)
        )
        return self._integer_product(graph, x, turned, scales, table.shape[1])


class Int4(Int8):
    """Layers' weights as 4 bits with a scale for each 32 of a column, activations in float32, by
    ONNX Runtime's own MatMulNBits. The word table stays int8, for looking up and for the head."""

    fused = True
    _BLOCK = 32

    def product(self, graph: Graph, x: str, name: str, stack: np.ndarray, pick: Pick) -> str:
        packed, scale = self._packed(stack)
        weight = picked(graph, graph.constant(name, entries(packed)), pick)
        scales = picked(graph, graph.constant(f"{name}/scale", entries(scale)), pick)
        return graph(
            "MatMulNBits",
            x,
            weight,
            scales,
            K=stack.shape[1],
            N=stack.shape[2],
            bits=4,
            block_size=self._BLOCK,
            accuracy_level=4,  # activations are rounded to int8 as it runs; else it is slow
            fused=True,
        )

    def _packed(self, stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[S, K, N] as the operator reads it: uint8 [S, N, blocks, 16], of two numbers in each byte
        the lower bits first, of which 8 stands for 0; and float32 scales [S, N * blocks]."""
        sets, rows, columns = stack.shape
        blocks = -(-rows // self._BLOCK)
        whole = np.zeros((sets, blocks * self._BLOCK, columns), np.float32)
        whole[:, :rows] = stack
        apart = whole.transpose(0, 2, 1).reshape(sets, columns, blocks, self._BLOCK)
        # From -8 to 7: the number that is furthest from 0 becomes -8, whatever its sign.
        at = np.abs(apart).argmax(-1, keepdims=True)
        scale = np.take_along_axis(apart, at, -1) / -8
        scale = np.where(scale == 0, 1, scale).astype(np.float32)
        numbers = (np.clip(np.rint(apart / scale), -8, 7) + 8).astype(np.uint8)
        packed = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
        return packed, scale.reshape(sets, columns * blocks)
