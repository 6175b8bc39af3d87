"""Any model agrees with an independent forward pass in float64; see tests/reference.py."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from albert.inference import Pretrained
from albert.interop.original import name_of
from albert.interop.weights import entries
from models import random_weights


@st.composite
def shapes(draw):
    heads = draw(st.integers(1, 4))
    hidden = heads * draw(st.integers(2, 6))
    groups = draw(st.integers(1, 3))
    return {
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "embedding_size": draw(st.sampled_from([hidden, 4, 7])),
        "sharing": f"groups:{groups}",
        "num_hidden_layers": draw(st.integers(groups, 5)),
        "inner_group_num": draw(st.integers(1, 2)),
        "intermediate_size": draw(st.integers(1, 20)),
        "vocab_size": draw(st.integers(6, 30)),
        "type_vocab_size": draw(st.integers(2, 3)),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "gelu_erf"])),
    }


@given(shapes(), st.integers(1, 3), st.integers(1, 12), st.integers(0, 2**31))
@settings(deadline=None, max_examples=3)
def test_random_models_agree_with_float64(shape, rows, length, seed):
    weights = random_weights(seed, **shape)
    config = weights.config
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (rows, length))
    types = rng.integers(0, config.type_vocab_size, (rows, length))
    mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(int)
    variables = {e.name: e.write(weights.params[e.path]) for e in entries(config, name_of)}
    expected = reference.forward(config, variables, ids, mask, types)
    output = Pretrained(weights)(
        ids, mask, types, output_hidden_states=True, output_mlm_logits=True
    )
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(output, name), value, rtol=2e-5, atol=2e-5, err_msg=name)
