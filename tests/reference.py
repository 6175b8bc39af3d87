"""ALBERT's forward pass in NumPy and float64, written from the paper and the released program's
documentation, from variables in the released layout. Loops and two-dimensional products only."""

import math

import numpy as np

from albert.models.sharing import num_groups


def forward(config, variables, input_ids, attention_mask, token_type_ids):
    """Every output by name; `variables` by released name, as [in, out] matrices."""
    v = {name: np.asarray(value, np.float64) for name, value in variables.items()}
    e, h = config.embedding_size, config.hidden_size
    x = v["bert/embeddings/word_embeddings"][input_ids]
    x = x + v["bert/embeddings/token_type_embeddings"][token_type_ids]
    x = x + v["bert/embeddings/position_embeddings"][: input_ids.shape[1]]
    x = norm(x, v, "bert/embeddings/LayerNorm")
    if e != h:
        x = dense(x, v, "bert/encoder/embedding_hidden_mapping_in")
    states = [x]
    for layer in range(config.num_hidden_layers):
        groups = num_groups(config.sharing, config.num_hidden_layers)
        group = layer * groups // config.num_hidden_layers
        for inner in range(config.inner_group_num):
            scope = f"bert/encoder/transformer/group_{group}/inner_group_{inner}"
            x = np.stack(
                [
                    transformer_layer(config, row, mask, v, scope)
                    for row, mask in zip(x, attention_mask, strict=True)
                ]
            )
            states.append(x)
    pooled = np.tanh(dense(x[:, 0], v, "bert/pooler/dense"))
    head = act(config, dense(x, v, "cls/predictions/transform/dense"))
    head = norm(head, v, "cls/predictions/transform/LayerNorm")
    logits = head @ v["bert/embeddings/word_embeddings"].T + v["cls/predictions/output_bias"]
    order = pooled @ v["cls/seq_relationship/output_weights"].T
    return {
        "last_hidden_state": x,
        "hidden_states": np.stack(states),
        "pooled_output": pooled,
        "mlm_logits": logits,
        "sop_logits": order + v["cls/seq_relationship/output_bias"],
    }


def transformer_layer(config, x, mask, v, scope):
    """One row, [L, H] -> [L, H]."""
    q, k, value = (dense(x, v, f"{scope}/attention_1/self/{n}") for n in ("query", "key", "value"))
    width = config.hidden_size // config.num_attention_heads
    heads = []
    for head in range(config.num_attention_heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width) + (1.0 - mask) * -10000.0
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
    attended = dense(np.concatenate(heads, -1), v, f"{scope}/attention_1/output/dense")
    a = norm(x + attended, v, f"{scope}/LayerNorm")
    inner = act(config, dense(a, v, f"{scope}/ffn_1/intermediate/dense"))
    inner = dense(inner, v, f"{scope}/ffn_1/intermediate/output/dense")
    return norm(a + inner, v, f"{scope}/LayerNorm_1")


def dense(x, v, scope):
    return x @ v[f"{scope}/kernel"] + v[f"{scope}/bias"]


def norm(x, v, scope):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * v[f"{scope}/gamma"] + v[f"{scope}/beta"]


def act(config, x):
    if config.hidden_act == "relu":
        return np.maximum(x, 0.0)
    if config.hidden_act == "gelu_erf":
        return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
