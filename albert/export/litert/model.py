"""ALBERT as a LiteRT file: every weight once, and for each length one WHILE over the depth.

The letters of shapes are those of `albert/models/layers.py`, N here being the B L tokens of a call;
the formulas are those of the modules there, operator by operator.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from albert.export.interface import INPUTS, SMALLEST_NORM, Model
from albert.export.litert.graph import File, Graph, Tensor
from albert.export.litert.products import Float32, Int8, Pick, Products, entries
from albert.models.layers import LAYER_NORM_EPSILON

_LAYERS = "encoder/layers/"


def signature(length: int) -> str:
    """The key of the signature for rows of a length."""
    return f"length_{length}"


def build(model: Model, is_int8: bool, batch: int, lengths: Sequence[int]) -> File:
    """The model with a signature for each length, of `batch` rows each.

    Args:
      is_int8: keep products' weights, and the tables of words and positions, as int8.
    """
    file = File()
    for length in lengths:
        _Writer(model, Int8() if is_int8 else Float32(), file, batch, length).write()
    return file


def _table(of: str) -> str:
    """Where the embeddings of words or of positions are."""
    return f"embeddings/{of}_embeddings"


class _Writer:
    """The subgraphs of one length: the model, and condition and body of its loop."""

    def __init__(self, model: Model, products: Products, file: File, batch: int, length: int):
        self.of, self.config, self.params = model, model.config, model.params
        self.products, self.file = products, file
        self.batch, self.length = batch, length
        self.graph = Graph(file, signature(length))

    def write(self) -> None:
        g, of = self.graph, self.of
        shape = self.batch, self.length
        inputs = {name: g.input(name, shape, np.int32) for name in INPUTS}
        ids, mask, types = inputs.values()
        tokens = self.batch * self.length
        seen = g("CAST", mask, dtype=np.float32)
        x = self._embeddings(g.reshape(ids, tokens), g.reshape(types, tokens))
        depth, hidden = self._layers(x, seen)
        outputs: list[Tensor] = []
        if of.exit is not None:
            at = self._classifier(int(of.exit.value))
            outputs.append(self._exact(self._pooled(hidden), at))
            nothing = g.constant("no_rows", np.zeros(self.batch, np.int32))
            outputs.append(g.both("ADD", nothing, depth))
        else:
            pooled = self._pooled(hidden) if "pooler/kernel" in self.params else None
            for head in of.heads:
                outputs += self._head(head, hidden, pooled, seen)
        named = dict(zip(of.outputs, outputs, strict=True))
        self.file.sign(signature(self.length), g, inputs, named)

    def _head(self, head: str, hidden: Tensor, pooled: Any, seen: Tensor) -> list[Tensor]:
        """The outputs of a head; `pooled` is None where the head takes none."""
        g, rows = self.graph, (self.batch, self.length)
        if head == "hidden":
            return [g.reshape(hidden, *rows, self.config.hidden_size)]
        if head == "sentence":
            return [self._sentence(hidden, pooled, seen)]
        if head == "mlm":
            return [g.reshape(self._mlm(hidden), *rows, self.config.vocab_size)]
        if head == "span":
            logits = self._exact(hidden, "span_head")
            of_each = (g.slice(logits, (0, part), (logits.shape[0], 1)) for part in range(2))
            return [g.reshape(part, *rows) for part in of_each]
        if head == "tokens":
            logits = self._exact(hidden, "tokens_head")
            return [g.reshape(logits, *rows, logits.shape[1])]
        return [self._exact(pooled, f"{head}_head")]

    def _embeddings(self, ids: Tensor, types: Tensor) -> Tensor:
        """int32 [N] twice -> [N, E]."""
        g, c = self.graph, self.config
        words = self._rows("word", ids)
        kinds = g.rows(self._kept("embeddings/token_type_embeddings"), types)
        places = g.constant(f"places_{self.length}", np.arange(self.length, dtype=np.int32))
        positions = self._rows("position", places)
        total = g.both("ADD", words, kinds)
        total = g.reshape(total, self.batch, self.length, c.embedding_size)
        total = g.reshape(g.both("ADD", total, positions), ids.shape[0], c.embedding_size)
        norm = "embeddings/layer_norm"
        return layer_norm(g, total, self._kept(f"{norm}/scale"), self._kept(f"{norm}/bias"))

    def _layers(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The mapping E -> H, if any, and the layers: [N, E] -> how many, int32 []; and [N, H]."""
        g, c = self.graph, self.config
        if c.maps_embeddings:
            x = self._dense(x, "encoder/embedding_hidden_mapping_in")
        hides = g.both("SUB", g.scalar(1.0), seen)
        visible = g.both("MUL", hides, g.scalar(-10000.0))
        visible = g.reshape(visible, self.batch, 1, 1, self.length)
        first = g.constant("none", np.array(0, np.int32))
        states = first, x, visible

        def begin(what: str) -> tuple[Graph, list[Tensor]]:
            graph = Graph(self.file, f"{what}_{self.length}")
            names = ("depth", "x", "visible")
            return graph, [
                graph.input(name, state.shape, state.dtype)
                for name, state in zip(names, states, strict=True)
            ]

        goes_on, given = begin("goes_on")
        exit = self.of.exit
        depth = c.depth if exit is None else int(exit.value)
        most = goes_on.constant(f"depth_{depth}", np.array(depth, np.int32))
        again = goes_on("LESS", given[0], most, dtype=bool, options=schema.LessOptionsT())
        goes_on.end(given, [again])
        body, given = begin("layer")
        deeper = _Layer(self, body, *given).written()
        after = body.both("ADD", given[0], body.constant("one", np.array(1, np.int32)))
        body.end(given, [after, deeper, given[2]])
        found = g.loop(states, goes_on, body)
        return found[0], found[1]

    def _classifier(self, depth: int) -> str:
        """Where the classifier of a depth is."""
        return "classifier_head" if depth == self.config.depth else f"exits_head/depth_{depth}"

    def _firsts(self, hidden: Tensor) -> Tensor:
        """Of the first token of each row: [B, H]."""
        g, width = self.graph, self.config.hidden_size
        rows = g.reshape(hidden, self.batch, self.length, width)
        return g.reshape(g.slice(rows, (0, 0, 0), (self.batch, 1, width)), self.batch, width)

    def _pooled(self, hidden: Tensor) -> Tensor:
        return self.graph("TANH", self._dense(self._firsts(hidden), "pooler"))

    def _sentence(self, hidden: Tensor, pooled: Any, seen: Tensor) -> Tensor:
        """A text's vector, of length 1: [B, H]."""
        g = self.graph
        if self.of.pooling == "pooled":
            vector = pooled
        elif self.of.pooling == "cls":
            vector = self._firsts(hidden)
        else:  # the mean has the direction of the sum, which is all that is left of it
            rows = g.reshape(hidden, self.batch, self.length, self.config.hidden_size)
            weights = g.reshape(seen, self.batch, self.length, 1)
            vector = g.reduce("SUM", g.both("MUL", rows, weights), 1, keep=False)
        squares = g.reduce("SUM", g.both("MUL", vector, vector), 1, keep=True)
        length = g.both("MAXIMUM", g("SQRT", squares), g.scalar(SMALLEST_NORM))
        return g.both("DIV", vector, length)

    def _mlm(self, hidden: Tensor) -> Tensor:
        """Scores of every piece: [N, V]."""
        g = self.graph
        x = activated(g, self._dense(hidden, "mlm_head/transform"), self.config.hidden_act)
        norm = "mlm_head/layer_norm"
        x = layer_norm(g, x, self._kept(f"{norm}/scale"), self._kept(f"{norm}/bias"))
        name, bias = _table("word"), self._kept("mlm_head/output_bias")
        return self.products.scores(g, x, name, self._weight(name), bias)

    def _rows(self, of: str, ids: Tensor) -> Tensor:
        """Rows of the table of words, or of that of positions."""
        name = _table(of)
        return self.products.rows(self.graph, ids, name, self._weight(name))

    def _weight(self, path: str) -> np.ndarray:
        return np.asarray(self.params[path], np.float32)

    def _kept(self, path: str) -> Tensor:
        """A parameter as it is, float32."""
        return self.graph.constant(path, self._weight(path))

    def _exact(self, x: Tensor, path: str) -> Tensor:
        """A dense layer in float32, for the few numbers of a head."""
        return self._dense(x, path, Float32())

    def _dense(self, x: Tensor, path: str, products: Products | None = None) -> Tensor:
        kernel = self._weight(f"{path}/kernel")
        return (products or self.products).product(
            self.graph, x, f"{path}/kernel", kernel[None], None, self._kept(f"{path}/bias")
        )


class _Layer:
    """The body of the loop: one layer, with the weights of its depth."""

    def __init__(self, writer: _Writer, graph: Graph, depth: Tensor, x: Tensor, visible: Tensor):
        self.writer, self.graph, self.config = writer, graph, writer.config
        self.depth, self.x, self.visible = depth, x, visible
        self._picks: dict[tuple[int, ...], Tensor] = {}

    def written(self) -> Tensor:
        """What comes out, [N, H]."""
        g, x = self.graph, self.x
        qkv = self._dense(x, [f"attention/{name}" for name in ("query", "key", "value")])
        attended = self._dense(self._attention(qkv), ["attention/output"], contracted=2)
        a = self._added_norm(x, attended, "attention_layer_norm")
        h = activated(g, self._dense(a, ["intermediate"]), self.config.hidden_act)
        return self._added_norm(a, self._dense(h, ["output"]), "output_layer_norm")

    def _stack(self, leaf: str) -> np.ndarray:
        return self.writer._weight(_LAYERS + leaf)

    def _pick(self, leaf: str) -> Pick:
        """The entry of a leaf's stack at this depth."""
        table = self.config.leaf_sets(leaf)
        if max(table) == 0:
            return None
        if table == tuple(range(len(table))):
            return self.depth
        if table not in self._picks:
            g = self.graph
            name = "sets_" + "_".join(map(str, table))
            sets = g.constant(name, np.array(table, np.int32))
            self._picks[table] = g.entry(sets, self.depth)
        return self._picks[table]

    def _small(self, name: str, leaf: str, stack: np.ndarray) -> Tensor:
        """A bias or a scale of this depth, float32."""
        pick = self._pick(leaf)
        constant = self.graph.constant(_LAYERS + name, entries(stack))
        return constant if pick is None else self.graph.entry(constant, pick)

    def _dense(self, x: Tensor, paths: list[str], contracted: int = 1) -> Tensor:
        """x [N, K] times kernels that lie side by side, the low-rank differences to them, if any,
        and their biases."""
        g = self.graph

        def matrices(leaf: str, axes: int) -> np.ndarray:
            """[S, K, M], of which the first `axes` axes behind S are contracted."""
            stack = self._stack(leaf)
            return stack.reshape(len(stack), math.prod(stack.shape[1 : 1 + axes]), -1)

        kernels = np.concatenate([matrices(f"{path}/kernel", contracted) for path in paths], axis=2)
        biases = np.concatenate([matrices(f"{path}/bias", 0) for path in paths], axis=2)[:, 0]
        name = "+".join(paths)
        bias = self._small(f"{name}/bias", f"{paths[0]}/bias", biases)
        result = self.writer.products.product(
            g, x, f"{_LAYERS}{name}/kernel", kernels, self._pick(f"{paths[0]}/kernel"), bias
        )
        if not self.config.low_rank(paths[0].startswith("attention")):
            return result
        differences = []
        for path in paths:
            factors = x
            for leaf, axes in ((f"{path}/lora_a", contracted), (f"{path}/lora_b", 1)):
                # Narrow, and a part of every depth's own: kept as it is.
                factors = Float32().product(
                    g, factors, _LAYERS + leaf, matrices(leaf, axes), self._pick(leaf), None
                )
            differences.append(factors)
        difference = differences[0]
        if len(differences) > 1:
            options = schema.ConcatenationOptionsT(1)
            difference = g("CONCATENATION", *differences, shape=result.shape, options=options)
        return g.both("ADD", result, difference)

    def _attention(self, qkv: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D) + bias) v of [N, 3 H]: [N, H]."""
        g, c = self.graph, self.config
        tokens, heads = qkv.shape[0], c.num_attention_heads
        width = c.hidden_size // heads
        parts = g.several(
            "SPLIT",
            [g.constant("axis_1", np.array(1, np.int32)), qkv],
            [((tokens, c.hidden_size), np.float32)] * 3,
            schema.SplitOptionsT(3),
        )
        rows = self.writer.batch, self.writer.length
        q, k, v = (g.transpose(g.reshape(part, *rows, heads, width), 0, 2, 1, 3) for part in parts)
        q = g.both("MUL", q, g.scalar(1 / math.sqrt(width)))
        scores = g.both("ADD", g.matmul(q, k, is_turned=True), self.visible)
        shares = g("SOFTMAX", scores, options=schema.SoftmaxOptionsT(1.0))
        context = g.transpose(g.matmul(shares, v, is_turned=False), 0, 2, 1, 3)
        return g.reshape(context, tokens, c.hidden_size)

    def _added_norm(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """LayerNorm of a sum."""
        scale, bias = (
            self._small(f"{norm}/{leaf}", f"{norm}/{leaf}", self._stack(f"{norm}/{leaf}"))
            for leaf in ("scale", "bias")
        )
        return layer_norm(self.graph, self.graph.both("ADD", x, y), scale, bias)


def layer_norm(g: Graph, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Over the last axis of [N, H]."""
    centred = g.both("SUB", x, g.reduce("MEAN", x, 1, keep=True))
    variance = g.reduce("MEAN", g.both("MUL", centred, centred), 1, keep=True)
    inverse = g("RSQRT", g.both("ADD", variance, g.scalar(LAYER_NORM_EPSILON)))
    return g.both("ADD", g.both("MUL", g.both("MUL", centred, inverse), scale), bias)


def activated(g: Graph, x: Tensor, name: str) -> Tensor:
    """An activation of `albert.models.config.ACTIVATIONS`."""
    if name == "relu":
        return g("RELU", x)
    return g("GELU", x, options=schema.GeluOptionsT(name == "gelu"))
