"""Attention kernels: each gives what the plain path gives, in every output and gradient, for padded
and for packed rows; which of them is chosen; and what they are refused for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from albert.models import attention
from albert.models.attention import cudnn, splash, xla
from albert.models.attention.base import Use

ON_GPU = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU of NVIDIA's")
ON_TPU = pytest.mark.skipif(jax.default_backend() != "tpu", reason="needs a TPU")
LENGTHS = (64, 128, 192, 320, 512)
USE = Use(length=128, head_dim=64, dtype="bfloat16", dropout=0.0, packed=False, backend=None)


def rows(length, packed, count=2, heads=2, head_dim=64, dtype=jnp.float32):
    """q, k, v and a gradient of the result [B, L, A, D], attention_mask and segment_ids [B, L].
    The last row is whole or has one example fewer."""
    rng = np.random.default_rng(length)
    shape = count, length, heads, head_dim
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]
    segments = np.zeros((count, length), np.int32)
    ends = [length // 5, length // 2, length - 3] if packed else [length // 2]
    begin = 0
    for number, end in enumerate(ends):
        segments[:-1, begin:end] = number + 1
        begin = end
    segments[-1, : length // 3] = 1
    segments[-1, length // 3 :] = 2 if packed else 1
    return arrays, (segments > 0).astype(np.int32), segments if packed else None


def outcome(kernel, arrays, mask, segments, most=3):
    """What comes out for real tokens, and the gradients of q, k and v."""
    q, k, v, dy = arrays
    real = jnp.asarray(mask)[:, :, None, None] > 0

    @jax.jit
    def run(q, k, v):
        prepared = kernel.prepare(
            jnp.asarray(mask), None if segments is None else jnp.asarray(segments), most
        )
        y, pull = jax.vjp(lambda q, k, v: kernel.attend(q, k, v, prepared), q, k, v)
        return jnp.where(real, y, 0), y, *pull(jnp.where(real, dy, 0).astype(y.dtype))

    real_y, y, *gradients = run(q, k, v)
    assert jnp.isfinite(y).all()
    return real_y, *gradients


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=tolerance)


class _Interpreted:
    prepare = staticmethod(splash.prepare)

    @staticmethod
    def attend(*arguments):
        return splash.attend(*arguments, interpret=True)


def check(kernel, length, packed, dtype=jnp.float32, tolerance=1e-5):
    """Against the plain path in float32, and every example against itself alone."""
    arrays, mask, segments = rows(length, packed, dtype=dtype)
    found = outcome(kernel, arrays, mask, segments)
    exact = [x.astype(jnp.float32) for x in arrays]
    assert_close(found, outcome(xla.KERNEL, exact, mask, segments), tolerance)
    numbers = mask if segments is None else segments
    for row in range(len(mask)):
        for number in range(1, numbers[row].max() + 1):
            where = np.flatnonzero(numbers[row] == number)
            cut = [x[row : row + 1, where] for x in exact]
            alone = outcome(xla.KERNEL, cut, np.ones((1, len(where)), np.int32), None)
            assert_close([x[row : row + 1, where] for x in found], alone, 2 * tolerance)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "length", [pytest.param(n, marks=() if n == 64 else pytest.mark.slow) for n in LENGTHS]
)
def test_splash_interpreted(length, packed):
    check(_Interpreted, length, packed)


def test_splash_blocks_cut_a_row_into_equal_parts():
    found = {length: splash.block_size(length) for length in range(128, 2049, 128)}
    assert found[128] == 128
    assert found[384] == 384
    assert found[512] == found[1024] == found[1536] == 512
    assert all(length % block == 0 and block % 128 == 0 for length, block in found.items())


def test_splash_over_devices_is_that_on_one(monkeypatch):
    """Rows over two axes of the mesh and heads over the third, inside of jit."""
    import flax.linen as nn

    from albert.train.sharding import mesh_over

    arrays, mask, segments = rows(64, True, count=4)
    one = outcome(_Interpreted, arrays, mask, segments)
    mesh = mesh_over(jax.devices(), (1, 2, 2, 2))
    rules = (("batch", ("data", "fsdp")), ("heads", ("tensor",)))
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        several = outcome(_Interpreted, [jax.device_put(x, where) for x in arrays], mask, segments)
    assert_close(several, one, 1e-6)


@pytest.fixture
def cudnn_here(monkeypatch):
    """A stand-in for cuDNN that reads lengths and offsets as its documentation says, and leaves
    whatever it likes, here no numbers at all, where no example is."""

    def numbers_of(lengths, offsets, length):
        place = jnp.arange(length)
        if offsets is None:
            lengths, offsets = lengths[:, None], jnp.zeros((len(lengths), 2), jnp.int32)
        assert lengths.dtype == offsets.dtype == jnp.int32
        assert offsets.shape == (len(lengths), lengths.shape[1] + 1)
        found = jnp.zeros((len(lengths), length), jnp.int32)
        for m in range(lengths.shape[1]):
            begin, size = offsets[:, m, None], lengths[:, m, None]
            inside = (begin >= 0) & (place >= begin) & (place < begin + size)
            found = jnp.where(inside, m + 1, found)
        return found

    @jax.custom_vjp
    def attend(q, k, v, numbers):
        return forward(q, k, v, numbers)[0]

    def plain(q, k, v, numbers):
        return xla.attend(q, k, v, xla.prepare(numbers, numbers))

    def spoiled(x, numbers):
        return jnp.where(numbers[:, :, None, None] > 0, x, jnp.nan)

    def forward(q, k, v, numbers):
        return spoiled(plain(q, k, v, numbers), numbers), (q, k, v, numbers)

    def backward(kept, dy):
        *qkv, numbers = kept
        dy = jnp.where(numbers[:, :, None, None] > 0, dy, 0)
        gradients = jax.vjp(lambda q, k, v: plain(q, k, v, numbers), *qkv)[1](dy)
        return *(spoiled(x, numbers) for x in gradients), None

    attend.defvjp(forward, backward)

    def public(q, k, v, *, scale, query_seq_lengths, key_value_seq_lengths, implementation):
        assert implementation == "cudnn"
        assert scale == 1 / np.sqrt(q.shape[-1])
        assert query_seq_lengths is key_value_seq_lengths
        return attend(q, k, v, numbers_of(query_seq_lengths, None, q.shape[1]))

    def private(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
        assert mask_type.name == "PADDING"
        assert q_seqlen is kv_seqlen
        assert q_offsets is kv_offsets
        assert q_offsets.shape[1] > 2  # of two, jax takes the rows for rows of one example
        return attend(q, k, v, numbers_of(q_seqlen, q_offsets, q.shape[1]))

    found = cudnn._packed_attention()
    assert found is not None, "jax has another function for packed rows"
    monkeypatch.setattr(jax.nn, "dot_product_attention", public)
    monkeypatch.setattr(cudnn, "_packed_attention", lambda: (private, found[1]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [64, 192])
def test_cudnn_is_told_where_examples_are_and_leaves_nothing_in_padding(cudnn_here, length, packed):
    check(cudnn.KERNEL, length, packed)
    arrays, mask, _ = rows(length, False)
    alone = outcome(cudnn.KERNEL, arrays, mask, mask, most=1)
    assert_close(alone, outcome(xla.KERNEL, arrays, mask, mask, most=1), 1e-5)


def test_offsets_of_packed_rows():
    segments = jnp.asarray([[1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [0] * 8])
    found = cudnn.prepare((segments > 0).astype(jnp.int32), segments, 3)
    assert found.lengths.tolist() == [[2, 3, 1], [8, -1, -1], [-1, -1, -1]]
    assert found.offsets.tolist() == [[0, 2, 5, -1], [0, -1, -1, -1], [-1, -1, -1, -1]]
    assert found.real[0, :, 0, 0].tolist() == [True] * 6 + [False] * 2


def test_without_jax_s_function_packed_rows_are_refused(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as module

    monkeypatch.setattr(module, "dot_product_attention", lambda query, key, value: query)
    packed = USE._replace(packed=True, backend="gpu", capability="9.0")
    assert attention.choose("auto", packed)[0] == "xla"
    (problem,) = attention.attention_problems("cudnn", packed)
    assert f"jax {jax.__version__} has no attention of cuDNN for packed rows" in problem
    arrays, mask, segments = rows(64, True)
    with pytest.raises(ValueError, match="no attention of cuDNN for packed rows"):
        outcome(cudnn.KERNEL, arrays, mask, segments)


@pytest.mark.parametrize(
    ("use", "kernel", "why"),
    [
        ({"backend": "cpu"}, "xla", "there is no fused kernel for cpu"),
        ({"backend": "gpu", "capability": "9.0"}, "cudnn", "it is the fused kernel for gpu"),
        ({"backend": "gpu", "capability": "7.5"}, "xla", "compute capability 7.5"),
        ({"backend": "gpu", "capability": "8.0"}, "cudnn", ""),
        ({"backend": "gpu", "capability": "8.0", "packed": True}, "xla", "needs 9.0 for packed"),
        ({"backend": "gpu", "capability": "gfx942"}, "xla", "gfx942, is none of NVIDIA's"),
        ({"backend": "gpu", "capability": "9.0", "dtype": "float32"}, "xla", "not float32"),
        ({"backend": "gpu", "capability": "9.0", "head_dim": 60}, "xla", "not 60"),
        ({"backend": "gpu", "capability": "8.0", "head_dim": 192}, "xla", "up to 128, not 192"),
        ({"backend": "gpu", "capability": "9.0", "head_dim": 192}, "cudnn", ""),
        ({"backend": "gpu", "capability": "9.0", "dropout": 0.1}, "xla", "has no dropout"),
        ({"backend": "tpu"}, "splash", "it is the fused kernel for tpu"),
        ({"backend": "tpu", "packed": True, "dtype": "float32"}, "splash", ""),
        ({"backend": "tpu", "dropout": 0.1}, "xla", "has no dropout"),
    ],
)
def test_which_kernel_is_chosen_and_why(use, kernel, why):
    chosen, reason = attention.choose("auto", USE._replace(**use))
    assert chosen == kernel
    assert why in reason
    assert attention.choose("xla", USE._replace(**use))[0] == "xla"
    assert attention.attention_problems("auto", USE._replace(**use)) == []


def test_a_kernel_that_is_not_for_this_machine_is_refused_with_those_that_are():
    (problem,) = attention.attention_problems("cudnn", USE._replace(backend="cpu"))
    assert problem == (
        "attention is 'cudnn', and cuDNN is not there on cpu, only on NVIDIA's GPUs; xla would work"
    )
    (problem,) = attention.attention_problems("splash", USE._replace(backend="gpu"))
    assert problem.endswith("only on TPUs; xla, cudnn would work")


@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_fused_kernels_do_not_drop_dropout(name):
    arrays, mask, _ = rows(64, False)
    kernel = attention.KERNELS[name]
    with pytest.raises(ValueError, match=f"{name}' has no dropout; use 'xla'"):
        kernel.attend(*arrays[:3], kernel.prepare(jnp.asarray(mask), None, 1), lambda p: p)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_cudnn_on_a_gpu(length, packed):
    check(cudnn.KERNEL, length, packed, jnp.bfloat16, tolerance=2e-2)


@ON_TPU
@pytest.mark.tpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_splash_on_a_tpu(length, packed):
    check(splash.KERNEL, length, packed, jnp.bfloat16, tolerance=2e-2)
