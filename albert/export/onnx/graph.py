"""Writing an ONNX graph node by node."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FUSED = "com.microsoft"  # the domain of ONNX Runtime's own operators


class Graph:
    """A graph that is being written; a body of a loop has the graph around it as its `outer`.

    Calling it adds a node and gives the name of what comes out: graph("Add", x, y). Constants of a
    body lie in the outermost graph, where a runtime has each of them once whatever the depth.
    """

    def __init__(self, outer: "Graph | None" = None):
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, op: str, *inputs: str, outputs: int = 1, fused=False, **attributes) -> Any:
        """The name of the node's output, or, of several, a tuple of names."""
        names = tuple(self._fresh(op) for _ in range(outputs))
        domain = FUSED if fused else ""
        self.nodes.append(
            helper.make_node(op, inputs, names, names[0], domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def constant(self, name: str, value) -> str:
        """A tensor by its name, which it keeps in the file."""
        if self.outer is not None:
            return self.outer.constant(name, value)
        if name not in self._constants:
            # Not ascontiguousarray, which makes an array of one axis of a number.
            self._constants[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def number(self, value: float) -> str:
        return self.constant(f"number_{value!r}", np.float32(value))

    def integers(self, *values: int) -> str:
        """int64 [len(values)], as shapes and axes are given."""
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def name_last(self, value: str, name: str) -> None:
        """Gives a value the name of an output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name))

    def loop(
        self,
        count: str,
        states: Sequence[tuple[str, str, str, int]],
        body: "Graph",
        index: str,
        again: str | None = None,
    ) -> Any:
        """The states after `body` was applied, by name, or a tuple of names.

        Args:
          count: an int64 number: how often at most.
          states: of each what the first turn gets; its names where the body begins and ends; and
            its type, of TensorProto.
          body: nodes of one turn; `index` is the turn's number.
          again: what of the body says whether another turn follows, bool []; None: always.
        """
        flag, kept = "goes_on", again or "goes_on_still"
        if again is None:
            body.nodes.append(helper.make_node("Identity", [flag], [kept], kept))
        of_body = helper.make_graph(
            body.nodes,
            "layer",
            [
                helper.make_tensor_value_info(index, TensorProto.INT64, []),
                helper.make_tensor_value_info(flag, TensorProto.BOOL, []),
                *(helper.make_tensor_value_info(name, kind, None) for _, name, _, kind in states),
            ],
            [
                helper.make_tensor_value_info(kept, TensorProto.BOOL, []),
                *(helper.make_tensor_value_info(name, kind, None) for _, _, name, kind in states),
            ],
        )
        first = [value for value, *_ in states]
        return self("Loop", count, "", *first, outputs=len(states), body=of_body)

    def model(self, inputs, outputs, opset: int, uses_fused: bool, facts: dict[str, str]):
        """The finished model.

        Args:
          inputs, outputs: of the graph, as `helper.make_tensor_value_info` gives them.
          facts: kept in the file as its metadata.
        """
        graph = helper.make_graph(
            self.nodes, "albert", inputs, outputs, list(self._constants.values())
        )
        opsets = [helper.make_opsetid("", opset)]
        if uses_fused:
            opsets.append(helper.make_opsetid(FUSED, 1))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=_IR_VERSIONS[opset],
            producer_name="albert",
        )
        helper.set_model_props(model, facts)
        return model

    def _fresh(self, op: str) -> str:
        self._counts[op] = self._counts.get(op, 0) + 1
        within = "layer_" if self.outer is not None else ""
        return f"{within}{op}_{self._counts[op]}"


# The oldest version of the file format that goes with an opset, for the oldest runtimes.
_IR_VERSIONS = {17: 8, 18: 8}
