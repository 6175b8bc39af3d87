"""Writing a LiteRT file (.tflite) operator by operator, by the schema that its runtime brings.

A file has buffers and subgraphs. Tensors of any subgraph may name the same buffer, so that a weight
lies in the file once, however many subgraphs use it. Every shape is known when it is written.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Shape = tuple[int, ...]
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
_SCHEMA_VERSION, _IDENTIFIER = 3, b"TFL3"
# Bytes of what is no weight in a subgraph: a guess, for room that is made at once.
_OF_A_SUBGRAPH = 1 << 16
_ALIGNMENT = 16  # of the numbers of a buffer; the schema asks for it


class Tensor(NamedTuple):
    """A value of a subgraph."""

    number: int
    shape: Shape
    dtype: np.dtype
    is_constant: bool = False


class File:
    """A file that is being written."""

    def __init__(self) -> None:
        self._buffers: list[schema.BufferT] = [schema.BufferT()]  # the first one is of no constant
        self._named: dict[str, int] = {}
        self._scales: dict[bytes, _Scales] = {}
        self._codes: dict[tuple[str, int], int] = {}
        self.graphs: list[Graph] = []
        self._signatures: list[schema.SignatureDefT] = []

    def buffer(self, name: str, value: np.ndarray) -> int:
        """The number of the buffer of this name, which has one value in all of the file."""
        if name not in self._named:
            self._named[name] = len(self._buffers)
            self._buffers.append(_Buffer(np.ascontiguousarray(value).reshape(-1).view(np.uint8)))
        return self._named[name]

    def scales(self, value: np.ndarray) -> "_Scales":
        return self._scales.setdefault(value.tobytes(), _Scales(value))

    def code(self, op: str, version: int) -> int:
        return self._codes.setdefault((op, version), len(self._codes))

    def sign(
        self, key: str, graph: "Graph", inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Makes a subgraph one that is called by its key, with inputs and outputs by name."""
        graph.end(list(inputs.values()), list(outputs.values()))
        maps = (
            [schema.TensorMapT(name, value.number) for name, value in named.items()]
            for named in (inputs, outputs)
        )
        self._signatures.append(schema.SignatureDefT(*maps, key, self.graphs.index(graph)))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the buffers, and of the scales with their zero points."""
        buffers = sum(0 if buffer.data is None else len(buffer.data) for buffer in self._buffers)
        return buffers + sum(s.scale.nbytes + s.zeroPoint.nbytes for s in self._scales.values())

    @property
    def room(self) -> int:
        """Bytes that the file has at most, or nearly so."""
        return self.weight_bytes + _OF_A_SUBGRAPH * len(self.graphs)

    def written(self, facts: Mapping[str, Any]) -> bytearray:
        """The file; `facts` are kept in it as metadata."""
        codes = []
        for op, version in self._codes:
            code = getattr(schema.BuiltinOperator, op)
            codes.append(schema.OperatorCodeT(min(code, 127), None, version, code))
        self.buffer("facts", np.frombuffer(json.dumps(dict(facts)).encode(), np.uint8))
        model = schema.ModelT(
            version=_SCHEMA_VERSION,
            operatorCodes=codes,
            subgraphs=[graph.subgraph for graph in self.graphs],
            description="albert",
            buffers=self._buffers,
            metadata=[schema.MetadataT("albert", self._named["facts"])],
            signatureDefs=self._signatures,
        )
        builder = flatbuffers.Builder(self.room)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return builder.Output()


class _Buffer(schema.BufferT):
    """A buffer whose numbers are aligned; those that the schema's Python writes are not."""

    def Pack(self, builder):
        # A vector of bytes, as CreateNumpyVector writes it.
        builder.StartVector(1, len(self.data), _ALIGNMENT)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Scales(schema.QuantizationParametersT):
    """Scales of an int8 tensor; in the file once, whichever tensors have them."""

    def __init__(self, scales: np.ndarray):
        super().__init__(scale=scales, zeroPoint=np.zeros(scales.shape, np.int64))
        self._packed: tuple[flatbuffers.Builder, int] | None = None

    def Pack(self, builder):
        if self._packed is None or self._packed[0] is not builder:
            self._packed = builder, super().Pack(builder)
        return self._packed[1]


class Graph:
    """A subgraph that is being written. Calling it adds an operator and gives what comes out."""

    def __init__(self, file: File, name: str):
        self.file = file
        self.subgraph = schema.SubGraphT([], [], [], [], name)
        self.number = len(file.graphs)
        file.graphs.append(self)
        self._constants: dict[tuple[str, int], Tensor] = {}

    def input(self, name: str, shape: Shape, dtype: Any = np.float32) -> Tensor:
        return self._tensor(name, shape, np.dtype(dtype))

    def constant(self, name: str, value: np.ndarray, scales: np.ndarray | None = None) -> Tensor:
        """A constant by its name, which is that of its buffer.

        Args:
          value: float32, int32, or int8 with `scales`.
          scales: what int8 is multiplied by: one number, or one for each entry of the first axis.
            The same numbers may be had with either.
        """
        key = name, 0 if scales is None else len(scales)
        if key not in self._constants:
            buffer = self.file.buffer(name, value)
            self._constants[key] = self._tensor(name, value.shape, value.dtype, buffer, scales)
        return self._constants[key]

    def scalar(self, value: float) -> Tensor:
        return self.constant(f"number_{value!r}", np.array(value, np.float32))

    def integers(self, *values: int) -> Tensor:
        """int32 [len(values)], as shapes and axes are given."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int32))

    def __call__(
        self,
        op: str,
        first: Tensor,
        *more: Tensor | None,
        shape: Shape | None = None,
        dtype: Any = None,
        options: Any = None,
        version: int = 1,
    ) -> Tensor:
        """An operator with one output, by its name in the schema.

        Args:
          first, more: the inputs; None for one that is optional and absent.
          shape, dtype: of the output; None: those of the first input.
        """
        shape = first.shape if shape is None else shape
        dtype = first.dtype if dtype is None else np.dtype(dtype)
        result = self._tensor(self._fresh(op), shape, dtype)
        self._operator(op, (first, *more), [result], options, version)
        return result

    def several(
        self, op: str, inputs: Sequence[Tensor], like: Sequence[tuple[Shape, Any]], options: Any
    ) -> list[Tensor]:
        """An operator with several outputs, whose shapes and dtypes are given."""
        results = [self._tensor(self._fresh(op), shape, np.dtype(dtype)) for shape, dtype in like]
        self._operator(op, inputs, results, options, 1)
        return results

    def both(self, op: str, x: Tensor, y: Tensor) -> Tensor:
        """ADD, SUB, MUL, DIV or MAXIMUM, whose inputs are spread over each other."""
        options = "MaximumMinimum" if op == "MAXIMUM" else op.title()
        shape = np.broadcast_shapes(x.shape, y.shape)
        return self(op, x, y, shape=shape, options=getattr(schema, f"{options}OptionsT")())

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        options = schema.ReshapeOptionsT(list(shape))
        return self("RESHAPE", x, self.integers(*shape), shape=shape, options=options)

    def transpose(self, x: Tensor, *order: int) -> Tensor:
        shape = tuple(x.shape[axis] for axis in order)
        options = schema.TransposeOptionsT()
        return self("TRANSPOSE", x, self.integers(*order), shape=shape, options=options)

    def slice(self, x: Tensor, begin: Shape, size: Shape) -> Tensor:
        ends = self.integers(*begin), self.integers(*size)
        return self("SLICE", x, *ends, shape=size, options=schema.SliceOptionsT())

    def reduce(self, op: str, x: Tensor, axis: int, keep: bool) -> Tensor:
        """SUM or MEAN over an axis, which stays as one of length 1 or goes."""
        shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]
        options = schema.ReducerOptionsT(keep)
        return self(op, x, self.integers(axis), shape=tuple(shape), options=options)

    def entry(self, stack: Tensor, at: Tensor) -> Tensor:
        """An entry of the first axis, which a number int32 [] chooses."""
        version = 2 if stack.dtype == np.int8 else 1
        options = schema.GatherOptionsT(0)
        return self("GATHER", stack, at, shape=stack.shape[1:], options=options, version=version)

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table [V, E] that is float32 or int8, for ids int32 [N]: float32 [N, E]."""
        shape = (*ids.shape, table.shape[1])
        version = 2 if table.dtype == np.int8 else 1
        return self("EMBEDDING_LOOKUP", ids, table, shape=shape, dtype=np.float32, version=version)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [N, K] times a constant [M, K], and a constant bias [M]: float32 [N, M].

        Of an int8 weight x is rounded to 8 bits too, with scale and zero point for each row.
        """
        is_int8 = weight.dtype == np.int8
        return self(
            "FULLY_CONNECTED",
            x,
            weight,
            bias,
            shape=(x.shape[0], weight.shape[0]),
            options=schema.FullyConnectedOptionsT(asymmetricQuantizeInputs=is_int8),
            version=12 if is_int8 else 6,
        )

    def matmul(self, x: Tensor, y: Tensor, is_turned: bool) -> Tensor:
        """x [..., L, K] times y [..., K, M], or [..., M, K] where it is turned."""
        columns = y.shape[-2] if is_turned else y.shape[-1]
        options = schema.BatchMatMulOptionsT(adjY=is_turned)
        return self("BATCH_MATMUL", x, y, shape=(*x.shape[:-1], columns), options=options)

    def loop(self, states: Sequence[Tensor], goes_on: "Graph", body: "Graph") -> list[Tensor]:
        """The states after `body` was applied as long as `goes_on` says so."""
        options = schema.WhileOptionsT(goes_on.number, body.number)
        return self.several("WHILE", states, [(s.shape, s.dtype) for s in states], options)

    def end(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.subgraph.inputs = [tensor.number for tensor in inputs]
        self.subgraph.outputs = [tensor.number for tensor in outputs]

    def _fresh(self, op: str) -> str:
        return f"{op}_{len(self.subgraph.operators)}"

    def _operator(self, op, inputs, results, options, version) -> None:
        kind = 0
        if options is not None:
            kind = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.subgraph.operators.append(
            schema.OperatorT(
                self.file.code(op, version),
                [-1 if tensor is None else tensor.number for tensor in inputs],
                [tensor.number for tensor in results],
                kind,
                options,
            )
        )

    def _tensor(self, name, shape, dtype, buffer=0, scales=None) -> Tensor:
        kept = None if scales is None else self.file.scales(scales)
        tensor = schema.TensorT(
            np.array(shape, np.int32), _TYPES[dtype], buffer, name, kept, hasRank=True
        )
        self.subgraph.tensors.append(tensor)
        return Tensor(len(self.subgraph.tensors) - 1, tuple(shape), dtype, buffer > 0)
