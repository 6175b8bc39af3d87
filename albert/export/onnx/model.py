"""ALBERT as an ONNX graph: every weight once, and one loop over the depth.

The letters of shapes are those of `albert/models/layers.py`; the formulas are those of the modules
there, operator by operator.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, helper

from albert.export.interface import INPUTS, SMALLEST_NORM, Model
from albert.export.onnx.graph import Graph
from albert.export.onnx.products import Float32, Int8, Pick, entries, picked
from albert.models.exits import Exit
from albert.models.heads import BEAMS
from albert.models.layers import LAYER_NORM_EPSILON
from albert.models.rotary import turns

Products = Float32 | Int8
_LAYERS = "encoder/layers/"


def build(model: Model, products: Products, fused: bool, facts: Mapping[str, str]):
    """The model as an onnx.ModelProto; batch and length are free.

    Args:
      products: how weights are kept.
      fused: write operators that ONNX Runtime alone has: attention, LayerNorm with its sum, GELU.
      facts: kept as the file's metadata.
    """
    return _Writer(model, products, fused).model(facts)


class _Writer:
    def __init__(self, model: Model, products: Products, fused: bool):
        self.of = model
        self.config = model.config
        self.params = model.params
        self.products = products
        # The fused GELU has the tanh of the released program.
        self.fused = fused
        self.graph = Graph()
        self.turns: list[str] = []  # cosines and sines, [L, 1, D/2], of rotary positions

    def model(self, facts: Mapping[str, str]) -> onnx.ModelProto:
        g, of = self.graph, self.of
        ids, mask, types = INPUTS
        axes = ["batch", "options", "length"] if of.choices else ["batch", "length"]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in INPUTS]
        if of.choices:
            as_rows = g("Concat", g.integers(-1), self._length(ids, axis=2), axis=0)
            ids, mask, types = (g("Reshape", name, as_rows) for name in INPUTS)
        if of.exit is not None:
            leave = self._leaving_at if of.exit.rule == "depth" else self._leaving
            logits, depths = leave(of.exit, self._embeddings(ids, types), mask)
            labels = of.fields["classifier"]["labels"]
            shapes = {
                logits: (TensorProto.FLOAT, ["batch", labels]),
                depths: (TensorProto.INT64, ["batch"]),
            }
            left = []
            for name, (value, (kind, shape)) in zip(of.outputs, shapes.items(), strict=True):
                g.name_last(value, name)
                left.append(helper.make_tensor_value_info(name, kind, shape))
            return self._finished(inputs, left, facts)
        hidden = self._layers(self._embeddings(ids, types), mask)
        pooled = ""
        if "pooler/kernel" in self.params:
            first = g("Gather", hidden, g.constant("zero", np.int64(0)), axis=1)
            pooled = g("Tanh", self._dense(g, first, "pooler"))
        outputs: list[onnx.ValueInfoProto] = []
        width = self.config.hidden_size

        def give(value: str, shape: list, kind: int = TensorProto.FLOAT) -> None:
            name = of.outputs[len(outputs)]
            g.name_last(value, name)
            outputs.append(helper.make_tensor_value_info(name, kind, shape))

        for head in of.heads:
            if head == "hidden":
                give(hidden, ["batch", "length", width])
            elif head == "sentence":
                give(self._sentence(hidden, pooled, mask), ["batch", width])
            elif head == "mlm":
                give(self._mlm(hidden), ["batch", "length", self.config.vocab_size])
            elif head == "span":
                logits = self._exact(hidden, "span_head")
                for part in range(2):
                    at = g.constant(f"of_span_{part}", np.int64(part))
                    give(g("Gather", logits, at, axis=2), ["batch", "length"])
            elif head == "conditional_span":
                for value, axes, of_type in self._conditional_span(hidden, mask, types):
                    give(value, axes, of_type)
            elif head == "tokens":
                labels = of.fields["tokens"]["labels"]
                give(self._exact(hidden, "tokens_head"), ["batch", "length", labels])
            elif of.choices:
                logits = self._exact(pooled, "classifier_head")
                shape = g("Concat", g.integers(-1), self._length(INPUTS[0], axis=1), axis=0)
                give(g("Reshape", logits, shape), ["batch", "options"])
            else:
                labels = 2 if head == "sop" else of.fields["classifier"]["labels"]
                give(self._exact(pooled, f"{head}_head"), ["batch", labels])
        return self._finished(inputs, outputs, facts)

    def _finished(self, inputs, outputs, facts: Mapping[str, str]) -> onnx.ModelProto:
        own = self.fused or self.products.fused  # operators of ONNX Runtime
        return self.graph.model(inputs, outputs, self.products.opset, own, dict(facts))

    def _length(self, ids: str, axis: int) -> str:
        """The size of an axis, int64 [1]."""
        g = self.graph
        return g("Slice", g("Shape", ids), g.integers(axis), g.integers(axis + 1), g.integers(0))

    def _embeddings(self, ids: str, types: str) -> str:
        g, name = self.graph, "embeddings/word_embeddings"
        words = self.products.rows(g, ids, name, self.params[name])
        kinds = g("Gather", self._kept("embeddings/token_type_embeddings"), types, axis=0)
        total, length = g("Add", words, kinds), self._length(ids, axis=1)

        def of_the_row(every: str) -> str:
            """The first entries of what there is for every position."""
            return g("Slice", every, g.integers(0), length, g.integers(0))

        if self.config.positions == "learned":
            total = g("Add", total, of_the_row(self._kept("embeddings/position_embeddings")))
        else:
            every = jnp.arange(self.config.max_position_embeddings)
            self.turns = [
                of_the_row(g.constant(f"turns_{number}", np.asarray(values)))
                for number, values in enumerate(turns(every, self.config.head_width))
            ]
        return self._layer_norm(g, total, "embeddings/layer_norm")

    def _layers(self, x: str, mask: str, depth: int | None = None) -> str:
        """The mapping E -> H, if any, and the layers, the first `depth` or all: [B, L, E] ->
        [B, L, H]."""
        x, visible = self._begin(x, mask)
        g, body = self.graph, Graph(outer=self.graph)
        ends = _Layer(self, body, "depth", visible).nodes("x")
        count = g.constant("layers", np.int64(depth or self.config.depth))
        return g.loop(count, [(x, "x", ends, TensorProto.FLOAT)], body, "depth")

    def _begin(self, x: str, mask: str) -> tuple[str, str]:
        """What the layers begin with, [B, L, H], and which tokens they see."""
        g = self.graph
        if self.config.maps_embeddings:
            x = self._dense(g, x, "encoder/embedding_hidden_mapping_in")
        if self.fused:
            return x, g("Cast", mask, to=TensorProto.INT32)
        hides = g("Sub", g.number(1.0), g("Cast", mask, to=TensorProto.FLOAT))
        return x, g("Unsqueeze", g("Mul", hides, g.number(-10000.0)), g.integers(1, 2))

    def _exits(self) -> list[str]:
        """Where the classifier of each depth is."""
        before = range(1, self.config.depth)
        return [*(f"exits_head/depth_{n}" for n in before), "classifier_head"]

    def _leaving_at(self, rule: Exit, x: str, mask: str) -> tuple[str, str]:
        """What `_leaving` gives, where all rows take as many layers: the loop looks at nothing."""
        g = self.graph
        depth = int(rule.value)
        hidden = self._layers(x, mask, depth)
        first = g("Gather", hidden, g.constant("zero", np.int64(0)), axis=1)
        pooled = g("Tanh", self._dense(g, first, "pooler"))
        took = helper.make_tensor("took", TensorProto.INT64, [1], [depth])
        depths = g("ConstantOfShape", self._length(INPUTS[0], axis=0), value=took)
        return self._exact(pooled, self._exits()[depth - 1]), depths

    def _leaving(self, rule: Exit, x: str, mask: str) -> tuple[str, str]:
        """The layers until the last row has left: logits [B, labels], and how many layers each row
        took, int64 [B]. The state of the loop is that of `albert.models.exits`, as far as the rule
        asks for it."""
        g = self.graph
        labels = self.of.fields["classifier"]["labels"]
        rows = self._length(INPUTS[0], axis=0)
        none = helper.make_tensor("none", TensorProto.INT64, [1], [0])
        zeros = g("ConstantOfShape", rows, value=none)
        nothing = g("ConstantOfShape", g("Concat", rows, g.integers(labels), axis=0))
        states = [
            (nothing, "answer", TensorProto.FLOAT),
            (zeros, "took", TensorProto.INT64),
            (g("Cast", zeros, to=TensorProto.BOOL), "left", TensorProto.BOOL),
        ]
        if rule.rule == "patience":
            states.append((zeros, "same", TensorProto.INT64))
        x, visible = self._begin(x, mask)
        body = Graph(outer=g)
        deeper = _Layer(self, body, "depth", visible).nodes("x")
        first = body("Gather", deeper, g.constant("zero", np.int64(0)), axis=1)
        pooled = body("Tanh", self._dense(body, first, "pooler"))
        kernel, bias = (
            body(
                "Gather",
                g.constant(
                    f"exits/{leaf}",
                    np.stack([self.params[f"{path}/{leaf}"] for path in self._exits()]),
                ),
                "depth",
                axis=0,
            )
            for leaf in ("kernel", "bias")
        )
        logits = body("Add", body("MatMul", pooled, kernel), bias)
        ends = self._look(rule, body, logits)
        waiting = body("Cast", body("Not", ends["left"]), to=TensorProto.INT64)
        again = body(
            "Greater", body("ReduceSum", waiting, keepdims=0), g.constant("zero", np.int64(0))
        )
        found = g.loop(
            g.constant("layers", np.int64(self.config.depth)),
            [
                (x, "x", deeper, TensorProto.FLOAT),
                *((value, name, ends[name], kind) for value, name, kind in states),
            ],
            body,
            "depth",
            again,
        )
        return found[1], found[2]

    def _look(self, rule: Exit, g: Graph, logits: str) -> dict[str, str]:
        """`exits.look` in the body of the loop: the next state, by the names of its parts."""
        kind = self.of.fields["classifier"]["kind"]
        one, none = g.constant("one", np.int64(1)), g.constant("zero", np.int64(0))
        ends = {}
        if rule.rule == "confidence":
            confidence = self._confidence(g, kind, logits)
            leaves = g("GreaterOrEqual", confidence, g.number(rule.value))
        else:
            agrees = g("And", self._agrees(rule, g, kind, logits), g("Greater", "depth", none))
            ends["same"] = g("Mul", g("Add", "same", one), g("Cast", agrees, to=TensorProto.INT64))
            leaves = g("GreaterOrEqual", ends["same"], g.constant("patience", np.int64(rule.value)))
        return ends | {
            "answer": g("Where", g("Unsqueeze", "left", g.integers(1)), "answer", logits),
            "took": g("Where", "left", "took", g("Add", "depth", one)),
            "left": g("Or", "left", leaves),
        }

    def _agrees(self, rule: Exit, g: Graph, kind: str, logits: str) -> str:
        """bool [B]: whether the answer is that of the depth before."""
        if kind == "number":
            difference = g("Squeeze", g("Abs", g("Sub", "answer", logits)), g.integers(1))
            return g("Less", difference, g.number(rule.tolerance or 0.0))
        if kind == "several":
            nothing = g.number(0.0)
            other = g("Xor", g("Greater", "answer", nothing), g("Greater", logits, nothing))
            others = g("Cast", other, to=TensorProto.FLOAT)
            return g("Equal", g("ReduceSum", others, g.integers(1), keepdims=0), nothing)
        answers = (g("ArgMax", x, axis=1, keepdims=0) for x in ("answer", logits))
        return g("Equal", *answers)

    def _confidence(self, g: Graph, kind: str, logits: str) -> str:
        """float32 [B]: the probability of the answer."""
        # Not ReduceMax, whose axes are an attribute in one opset and an input in the next.
        if kind == "several":
            shares, largest = g("Sigmoid", g("Abs", logits)), 0
        else:
            shares, largest = g("Softmax", logits, axis=-1), 1
        found, _ = g("TopK", shares, g.integers(1), axis=-1, largest=largest, outputs=2)
        return g("Squeeze", found, g.integers(1))

    def _sentence(self, hidden: str, pooled: str, mask: str) -> str:
        """A text's vector, of length 1."""
        g = self.graph
        if self.of.pooling == "pooled":
            vector = pooled
        elif self.of.pooling == "cls":
            vector = g("Gather", hidden, g.constant("zero", np.int64(0)), axis=1)
        else:  # the mean has the direction of the sum, which is all that is left of it
            weights = g("Unsqueeze", g("Cast", mask, to=TensorProto.FLOAT), g.integers(2))
            vector = g("ReduceSum", g("Mul", hidden, weights), g.integers(1), keepdims=0)
        squares = g("ReduceSum", g("Mul", vector, vector), g.integers(1), keepdims=1)
        return g("Div", vector, g("Max", g("Sqrt", squares), g.number(SMALLEST_NORM)))

    def _conditional_span(self, x: str, mask: str, types: str) -> list[tuple[str, list, int]]:
        """`ConditionalSpan` of `albert.models.heads`: its outputs in their order, each with shape
        and type."""
        g, head = self.graph, "conditional_span_head"
        zero, last = g.constant("zero", np.int64(0)), g.integers(-1)
        length = self._length(INPUTS[0], axis=1)
        beams = g("Min", length, g.integers(BEAMS))
        position = g("Range", zero, g("Squeeze", length), g.constant("one", np.int64(1)))
        tokens = g("ReduceSum", mask, g.integers(1), keepdims=1)
        inside = g("And", g("Greater", types, zero), g("Less", position, g("Add", tokens, last)))
        allowed = g("Or", inside, g("Equal", position, zero))

        def scores(logits: str, allowed: str) -> str:
            """Log-probabilities over the last axis but one, which is of one number."""
            logits = g("Where", allowed, g("Squeeze", logits, last), g.number(-1e30))
            return g("LogSoftmax", logits, axis=-1)

        def half(value: str, name: str, part: int) -> str:
            """Of `_OnPairs`: what one of the two vectors contributes."""
            width = self.config.hidden_size
            kernel = np.asarray(self.params[f"{head}/{name}/kernel"], np.float32)
            kernel = kernel[None, part * width : (part + 1) * width]
            path = f"{head}/{name}/kernel_{part}"
            return self.products.product(g, value, path, kernel, None)

        def joined(a: str, b: str, name: str) -> str:
            return g("Tanh", g("Add", g("Add", a, b), self._kept(f"{head}/{name}/bias")))

        start = scores(self._exact(x, f"{head}/start"), allowed)
        expected = g("MatMul", g("Unsqueeze", g("Exp", start), g.integers(1)), x)
        first = g("Slice", x, g.integers(0), g.integers(1), g.integers(1))
        answer = joined(
            half(expected, "answer_pairs", 0), half(first, "answer_pairs", 1), "answer_pairs"
        )
        none = g("Squeeze", self._exact(answer, f"{head}/answer"), g.integers(1, 2))
        top, at = g("TopK", start, beams, axis=-1, outputs=2)
        begun = g("GatherND", x, g("Unsqueeze", at, last), batch_dims=1)
        ends = joined(
            g("Unsqueeze", half(x, "end_pairs", 0), g.integers(1)),
            g("Unsqueeze", half(begun, "end_pairs", 1), g.integers(2)),
            "end_pairs",
        )
        ends = self._exact(self._layer_norm(g, ends, f"{head}/end_layer_norm"), f"{head}/end")
        ends = scores(ends, g("Unsqueeze", allowed, g.integers(1)))
        each = (g("Reshape", v, g.integers(0, -1)) for v in g("TopK", ends, beams, outputs=2))
        top_ends, ends_at = each  # start by start
        starts, pairs = ["batch", "starts"], ["batch", "pairs"]
        return [
            (top, starts, TensorProto.FLOAT),
            (at, starts, TensorProto.INT64),
            (top_ends, pairs, TensorProto.FLOAT),
            (ends_at, pairs, TensorProto.INT64),
            (none, ["batch"], TensorProto.FLOAT),
        ]

    def _mlm(self, hidden: str) -> str:
        g, name = self.graph, "embeddings/word_embeddings"
        x = self._activated(g, self._product(g, hidden, "mlm_head/transform"), "mlm_head/transform")
        x = self._layer_norm(g, x, "mlm_head/layer_norm")
        scores = self.products.scores(g, x, name, self.params[name])
        return g("Add", scores, self._kept("mlm_head/output_bias"))

    def _kept(self, path: str) -> str:
        """A parameter as it is, float32."""
        return self.graph.constant(path, np.asarray(self.params[path], np.float32))

    def _exact(self, x: str, path: str) -> str:
        """A dense layer in float32, for the few numbers of a head."""
        g = self.graph
        kernel = np.asarray(self.params[f"{path}/kernel"], np.float32)
        product = Float32().product(g, x, f"{path}/kernel", kernel[None], None)
        has_bias = f"{path}/bias" in self.params
        return g("Add", product, self._kept(f"{path}/bias")) if has_bias else product

    def _product(self, g: Graph, x: str, path: str) -> str:
        kernel = np.asarray(self.params[f"{path}/kernel"], np.float32)
        return self.products.product(g, x, f"{path}/kernel", kernel[None], None)

    def _dense(self, g: Graph, x: str, path: str) -> str:
        return g("Add", self._product(g, x, path), self._kept(f"{path}/bias"))

    def _activated(self, g: Graph, product: str, path: str, bias: str | None = None) -> str:
        """The activation of a product and its bias."""
        bias = bias or self._kept(f"{path}/bias")
        if self.fused and self.config.hidden_act == "gelu":
            return g("FastGelu", product, bias, fused=True)
        x = g("Add", product, bias)
        return _ACTIVATIONS[self.config.hidden_act](g, x)

    def _layer_norm(self, g: Graph, x: str, path: str) -> str:
        scale, bias = self._kept(f"{path}/scale"), self._kept(f"{path}/bias")
        return g("LayerNormalization", x, scale, bias, axis=-1, epsilon=LAYER_NORM_EPSILON)


class _Layer:
    """The body of the loop: one layer, with the weights of its depth."""

    def __init__(self, writer: _Writer, graph: Graph, depth: str, visible: str):
        self.writer, self.graph, self.visible = writer, graph, visible
        self.config = writer.config
        self.depth = depth
        self._picks: dict[tuple[int, ...], Pick] = {}

    def nodes(self, x: str) -> str:
        """Writes the layer; the name of what comes out."""
        g = self.graph
        names = "query", "key", "value"
        paths = [f"attention/{name}" for name in names]
        qkv = self._product(x, paths, contracted=1)
        if self.writer.fused:
            context = self._fused_attention(qkv, paths)
        else:
            context = self._attention(g("Add", qkv, self._bias(paths)))
        attended = self._product(context, ["attention/output"], contracted=2)
        a = self._added_norm(x, attended, "attention/output", "attention_layer_norm")
        h = self._product(a, ["intermediate"], contracted=1)
        h = self.writer._activated(g, h, "", self._bias(["intermediate"]))
        h = self._product(h, ["output"], contracted=1)
        return self._added_norm(a, h, "output", "output_layer_norm")

    def _stack(self, leaf: str) -> np.ndarray:
        return np.asarray(self.writer.params[_LAYERS + leaf], np.float32)

    def _pick(self, leaf: str) -> Pick:
        """The entry of a leaf's stack at this depth."""
        table = self.config.leaf_sets(leaf)
        if max(table) == 0:
            return None
        if table not in self._picks:
            g = self.graph
            if table == tuple(range(len(table))):
                self._picks[table] = self.depth
            else:
                name = g.constant("sets_" + "_".join(map(str, table)), np.array(table, np.int64))
                self._picks[table] = g("Gather", name, self.depth, axis=0)
        return self._picks[table]

    def _small(self, name: str, leaf: str, stack: np.ndarray) -> str:
        """A bias or a scale of this depth, float32."""
        constant = self.graph.constant(_LAYERS + name, entries(stack))
        return picked(self.graph, constant, self._pick(leaf))

    def _bias(self, paths: list[str]) -> str:
        """Biases side by side, [N]."""
        stacks = [self._stack(f"{path}/bias") for path in paths]
        flat = np.concatenate([stack.reshape(len(stack), -1) for stack in stacks], axis=1)
        return self._small("+".join(paths) + "/bias", f"{paths[0]}/bias", flat)

    def _product(self, x: str, paths: list[str], contracted: int) -> str:
        """x times kernels that lie side by side, and the low-rank differences to them, if any."""
        g, products = self.graph, self.writer.products

        def matrices(leaf: str, axes: int) -> np.ndarray:
            """[S, K, N], of which the first `axes` axes behind S are contracted."""
            stack = self._stack(leaf)
            return stack.reshape(len(stack), math.prod(stack.shape[1 : 1 + axes]), -1)

        kernels = np.concatenate([matrices(f"{path}/kernel", contracted) for path in paths], axis=2)
        name, pick = "+".join(paths), self._pick(f"{paths[0]}/kernel")
        result = products.product(g, x, f"{_LAYERS}{name}/kernel", kernels, pick)
        if not self.config.low_rank(paths[0].startswith("attention")):
            return result
        differences = []
        for path in paths:
            factors = x
            for leaf, axes in ((f"{path}/lora_a", contracted), (f"{path}/lora_b", 1)):
                # Narrow, and a part of every depth's own: kept as it is.
                factors = Float32().product(
                    g, factors, _LAYERS + leaf, matrices(leaf, axes), self._pick(leaf)
                )
            differences.append(factors)
        return g("Add", result, g("Concat", *differences, axis=-1))

    def _attention(self, qkv: str) -> str:
        """softmax(q k^T / sqrt(D) + bias) v of [B, L, 3 H]: [B, L, H]."""
        g, c = self.graph, self.config
        q, k, v = (
            g("Transpose", part, perm=perm)
            for part, perm in zip(
                self._heads(qkv), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
            )
        )
        scores = g("Mul", g("MatMul", q, k), g.number(1 / math.sqrt(c.head_width)))
        shares = g("Softmax", g("Add", scores, self.visible), axis=-1)
        context = g("Transpose", g("MatMul", shares, v), perm=[0, 2, 1, 3])
        return g("Reshape", context, g.integers(0, 0, c.hidden_size))

    def _heads(self, qkv: str) -> list[str]:
        """q, k and v, [B, L, A, D] each, with their biases; q and k turned to where they stand."""
        g, c = self.graph, self.config
        parts = g("Split", qkv, g.integers(*[c.hidden_size] * 3), axis=-1, outputs=3)
        apart = g.integers(0, 0, c.num_attention_heads, c.head_width)
        q, k, v = (g("Reshape", part, apart) for part in parts)
        if not self.writer.turns:
            return [q, k, v]
        cos, sin = self.writer.turns

        def turned(x: str) -> str:
            halves = g.integers(*[c.head_width // 2] * 2)
            a, b = g("Split", x, halves, axis=-1, outputs=2)
            first = g("Sub", g("Mul", a, cos), g("Mul", b, sin))
            return g("Concat", first, g("Add", g("Mul", b, cos), g("Mul", a, sin)), axis=-1)

        return [turned(q), turned(k), v]

    def _fused_attention(self, qkv: str, paths: list[str]) -> str:
        """The same by ONNX Runtime's operator, which takes the biases too."""
        g, c = self.graph, self.config
        bias = self._bias(paths)
        if self.writer.turns:  # they are turned behind their biases
            whole = g.integers(0, 0, c.hidden_size)
            parts = [g("Reshape", x, whole) for x in self._heads(g("Add", qkv, bias))]
            bias = ""
        else:
            parts = g("Split", qkv, g.integers(*[c.hidden_size] * 3), axis=-1, outputs=3)
        return g(
            "MultiHeadAttention",
            *parts,
            bias,
            self.visible,
            num_heads=c.num_attention_heads,
            fused=True,
        )

    def _added_norm(self, x: str, product: str, path: str, norm: str) -> str:
        """LayerNorm of x and of a product with its bias."""
        g, bias = self.graph, self._bias([path])
        scale, shift = (
            self._small(f"{norm}/{leaf}", f"{norm}/{leaf}", self._stack(f"{norm}/{leaf}"))
            for leaf in ("scale", "bias")
        )
        if self.writer.fused:
            return g(
                "SkipLayerNormalization",
                x,
                product,
                scale,
                shift,
                bias,
                epsilon=LAYER_NORM_EPSILON,
                fused=True,
            )
        total = g("Add", x, g("Add", product, bias))
        return g("LayerNormalization", total, scale, shift, axis=-1, epsilon=LAYER_NORM_EPSILON)


def _gelu(g: Graph, x: str) -> str:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); Hendrycks and Gimpel, 1606.08415."""
    cube = g("Mul", g("Mul", x, x), x)
    inner = g("Add", x, g("Mul", cube, g.number(0.044715)))
    tanh = g("Tanh", g("Mul", inner, g.number(math.sqrt(2 / math.pi))))
    return g("Mul", g("Mul", x, g.number(0.5)), g("Add", tanh, g.number(1.0)))


def _gelu_erf(g: Graph, x: str) -> str:
    erf = g("Erf", g("Mul", x, g.number(math.sqrt(0.5))))
    return g("Mul", g("Mul", x, g.number(0.5)), g("Add", erf, g.number(1.0)))


# The activations of `albert.models.config.ACTIVATIONS`.
_ACTIVATIONS = {"gelu": _gelu, "gelu_erf": _gelu_erf, "relu": lambda g, x: g("Relu", x)}
