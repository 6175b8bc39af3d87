"""What the compilers of H100 and TPU make of the training step: how it multiplies, what it keeps,
moves and sends. Reading a program is tested without them; see `tools/compilers`."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from albert.models.cost import layer_bytes
from albert.train.config import check
from albert.train.cost import parameters_of
from configs import base, large, xlarge, xxlarge
from tools.claims.sizes import resized
from tools.compilers import hlo
from tools.compilers.targets import TARGETS, compile_for, missing

SIZES = {"base": base, "large": large, "xlarge": xlarge, "xxlarge": xxlarge}


def of_size(size, rows, length=512, packing=0, **model):
    config = check(SIZES[size].get_config(), needs_text=False)
    config = resized(config, rows, length, 77 * length // 512, **{"remat": "none"} | model)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, packing=packing))


def asked(target, config):
    """The compiler's answer, or a skip where it is not installed."""
    if reason := missing(target):
        pytest.skip(reason)
    answer = compile_for(target, dataclasses.asdict(config))
    assert answer.get("fits"), answer
    return answer


def tokens_of(target, config):
    """On each device."""
    devices = {"tpu": 16, "cuda": int(target.partition("x")[2] or 1)}[TARGETS[target].platform]
    return config.train.batch_size * config.data.seq_length // devices


def judge(target, config, answer):
    """What holds for every size, policy and chip; a failure names the array or the product."""
    model, tokens = config.model, tokens_of(target, config)
    length, depth = config.data.seq_length, config.model.depth
    # Only the two classes of a sentence's order are multiplied in float32.
    assert [p for p in answer["float32_products"] if "sop_head" not in p] == []
    fused = TARGETS[target].attention == model.attention
    again = 1 if model.remat != "none" else 0
    unrolled = depth if model.scan_unroll == depth else 1
    if fused:
        assert answer["fused_attention"] >= (2 + again) * unrolled
        heads = model.num_attention_heads
        squares = rf"\b({heads}|{tokens // length * heads}),{length},{length}\]"
        assert [a for a in answer["arrays"] if re.search(squares, a)] == []
    # Logits and their gradient; the embeddings, their gradient and its optimizer.
    allowed = re.compile(r"mlm_head|embeddings|jit\(train_step\)/[^/]*$|custom-call|copy|loop_pad")
    assert [
        f"{array} {source}"
        for array, source in answer["arrays"].items()
        if re.search(rf"\b{model.vocab_size}\b", array) and not allowed.search(source)
    ] == []
    if unrolled == 1:
        expected = layer_bytes(model, length, model.remat, model.attention)
        assert answer["kept"] / tokens / depth == pytest.approx(expected, rel=0.05)


PROGRAMS = {
    "base": (("base", 32), {}),
    "base plain attention": (("base", 32), {"attention": "xla"}),
    "base dots": (("base", 32), {"remat": "dots"}),
    "base full": (("base", 32), {"remat": "full"}),
    "base packed": (("base", 32), {"packing": 4}),
    "base L 128": (("base", 128, 128), {}),
    "large": (("large", 16), {}),
    "xlarge dots": (("xlarge", 16), {"remat": "dots"}),
    "xxlarge full": (("xxlarge", 8), {"remat": "full"}),
}
# Bytes for each token and layer that the loops may move, and of temporaries, on an H100.
MOST_MOVED = {"base": 292_000, "base packed": 293_000, "base L 128": 300_000}
MOST_HELD = {"base": 4.8e9, "base packed": 4.7e9, "base dots": 4.0e9, "base full": 1.0e9}


@pytest.mark.compilers
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_on_an_h100(name):
    sizes, more = PROGRAMS[name]
    config = of_size(*sizes, **{"attention": "cudnn"} | more)
    answer = asked("h100", config)
    judge("h100", config, answer)
    moved = answer["moved_in_layers"] / tokens_of("h100", config) / config.model.depth
    assert moved < MOST_MOVED.get(name, float("inf"))
    assert answer["temporaries"] < MOST_HELD.get(name, float("inf"))


@pytest.mark.compilers
def test_the_program_for_an_h100_does_not_grow_with_the_depth():
    shallow, deep = (
        asked("h100", of_size("base", 8, attention="cudnn", num_hidden_layers=n)) for n in (6, 24)
    )
    assert abs(deep["lines"] - shallow["lines"]) < 0.02 * shallow["lines"]
    config = of_size("base", 8, attention="cudnn", num_hidden_layers=3, scan_unroll=3)
    written_out = asked("h100", config)
    judge("h100", config, written_out)
    assert written_out["moved_in_layers"] == 0  # there is no loop


@pytest.mark.compilers
@pytest.mark.parametrize(
    ("accumulation", "dtype"), [(1, "float32"), (4, "float32"), (1, "bfloat16")]
)
def test_eight_h100_sum_the_gradient_once(accumulation, dtype):
    config = of_size("base", 64, 128, attention="cudnn")
    train = dataclasses.replace(config.train, accumulation=accumulation, reduce_dtype=dtype)
    config = dataclasses.replace(config, train=train)
    sent = asked("h100x8", config)["exchanged"]
    item = {"float32": 4, "bfloat16": 2}[dtype]
    parameters = item * sum(parameters_of(config).values())
    # The word embeddings have two gradients, of lookup and head, which may be summed apart.
    words = item * config.model.vocab_size * config.model.embedding_size
    assert set(sent) == {"all-reduce"}
    assert parameters <= sent["all-reduce"]["bytes"] <= 1.01 * (parameters + words)


@pytest.mark.compilers
@pytest.mark.parametrize(
    ("chip", "name", "rows"),
    [
        ("v5e", "base", 72),  # for each chip: three times what fitted before the fused kernels
        pytest.param("v5e", "base packed", 24, marks=pytest.mark.slow),
        pytest.param("v6e", "xlarge dots", 8, marks=pytest.mark.slow),
        pytest.param("v5p", "xxlarge full", 8, marks=pytest.mark.slow),
    ],
)
def test_a_step_on_tpus(chip, name, rows):
    (size, _, *length), more = PROGRAMS[name]
    config = of_size(size, 16 * rows, *length, **{"attention": "splash"} | more)
    answer = asked(chip, config)
    judge(chip, config, answer)
    sent = answer["exchanged"]
    parameters = 4 * sum(parameters_of(config).values())
    words = 4 * config.model.vocab_size * config.model.embedding_size
    assert set(sent) == {"all-reduce"}
    assert sent["all-reduce"]["bytes"] <= 1.01 * (parameters + words)


@pytest.mark.compilers
@pytest.mark.parametrize(
    ("target", "parts", "sharing"),
    [("v5e", 1, "all"), ("v5e", 4, "all"), ("v5e", 1, "none"), ("h100x8", 1, "all")],
)
def test_fsdp_gathers_weights_once_for_every_use(target, parts, sharing):
    """In the compute dtype, and the gradient is summed once a step, or once for every use of a
    weight that a depth has for itself. A small model: its program has the same loops."""
    small = {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "embedding_size": 64,
        "num_hidden_layers": 5,
        "vocab_size": 1000,
        "attention": "xla",
        "sharing": sharing,
    }
    config = of_size("base", 64 * parts, 128, **small)
    train = dataclasses.replace(config.train, accumulation=parts)
    sharding = dataclasses.replace(config.sharding, data=1, fsdp=-1)
    config = dataclasses.replace(config, train=train, sharding=sharding)
    answer = asked(target, config)
    sent = answer["exchanged"]
    assert set(sent) == {"all-reduce", "all-gather"}
    parameters = 4 * sum(parameters_of(config).values())
    words = 4 * 1000 * 64
    assert parameters <= sent["all-reduce"]["bytes"] <= 1.01 * (parameters + words)
    of_layers = 4 * 256 * 256 + 2 * 256 * 1024
    others = 256 * 256 + 2 * 64 * 256  # pooler, embeddings to layers, layers to head
    tables = 4 * (1000 + 512 + 2) * 64
    kernels = re.compile(r"256,4,64\]|4,64,256\]|256,1024\]|1024,256\]")
    in_loops = [one for one in answer["exchanged_in_loops"] if kernels.search(one)]
    uses = 1
    if sharing == "none":
        assert sum(one.startswith("all-gather bf16") for one in in_loops) == 2 * 6
        assert sum(one.startswith("all-reduce f32") for one in in_loops) == len(in_loops) - 2 * 6
        uses = 2 * 5  # forward and backward, at every depth
    else:
        assert in_loops == []
    if parts == 1:
        # Small ones the TPU compiler sends as sums of zeros and what a device has.
        expected = 2 * (uses * of_layers + others) + tables
        assert sent["all-gather"]["bytes"] == pytest.approx(expected, rel=0.02)


def test_a_compiler_that_is_not_there_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing("v5e") == "no compiler for v5e: pip install -r requirements-report.txt"
    assert missing("h100").endswith("pip install --no-deps -r requirements-gpu-compiler.txt")
    assert compile_for("h100", {}) == {"missing": missing("h100")}


def test_bytes_products_and_stacks_of_a_program_whose_figures_are_known():
    """A loop of five turns over [64, 32] with a weight that all share, compiled here."""
    turns, rows, width = 5, 64, 32

    def loss(w, x):
        def layer(x, _):
            return jnp.tanh(x.reshape(8, 8, width) @ w).reshape(rows, width), None

        return jax.lax.scan(layer, x, None, length=turns)[0].sum()

    weight, x = (jnp.ones((n, width), jnp.float32) for n in (width, rows))
    text = jax.jit(jax.grad(loss)).lower(weight, x).compile().as_text()
    module = hlo.Module(text)
    of_loops = [sides for _, sides in hlo.products(module)]
    assert len(of_loops) == 3  # one forward, two backward
    assert {str(side.dtype) for sides in of_loops for side in sides} == {"f32"}
    bodies = {body for _, body in module.loops()}
    assert {times for name, times in module.running() if name in bodies} == {turns}
    found = hlo.figures(text, turns)
    assert found.products == 3
    assert len(found.float32_products) == 3
    assert found.exchanged == {}
    assert found.lines == text.count("\n")
    # At least what the loops cannot do without: every turn reads and writes x and reads w.
    least = 2 * turns * 4 * (2 * rows * width + width * width)
    assert least < found.moved < 20 * least


TEXT = """
HloModule step

%fused_slice (p0: f32[12,8,4], p1: s32[]) -> f32[1,8,4] {
  %p0 = f32[12,8,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,4}
}

%fused_update (p0: f32[12,8,4], p1: f32[1,8,4], p2: s32[]) -> f32[12,8,4] {
  %p0 = f32[12,8,4]{2,1,0} parameter(0)
  %p1 = f32[1,8,4]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[12,8,4]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %zero, %zero)
}

ENTRY %main (a: f32[12,8,4], i: s32[], b: (f32[2], bf16[4,4])) -> f32[12,8,4] {
  %a = f32[12,8,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %cut = f32[1,8,4]{2,1,0} fusion(%a, %i), kind=kLoop, calls=%fused_slice
  ROOT %all = f32[12,8,4]{2,1,0} fusion(%a, %cut, %i), kind=kLoop, calls=%fused_update
}
"""


def test_what_a_fusion_slices_or_updates_counts_by_the_slice():
    module = hlo.Module(TEXT)
    assert module.entry == "main"
    row, counter = 4 * 8 * 4, 4
    read_and_written = (row + counter + row) + (row + counter + row)
    assert hlo.moved_bytes(module, "main") == read_and_written
    (cut,) = (one for one in module.computations["main"] if one.name == "cut")
    assert cut.operands == ("a", "i")
    assert str(cut.arrays[0]) == "f32[1,8,4]"


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, use_global_device_ids=true", ((0, 2), (1, 3))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("replica_groups={}, to_apply=%add", ()),
        ("replica_groups=[2,2]<=[4], dimensions={0}", ((0, 1), (2, 3))),
        ("replica_groups=[4,2]<=[4,2]T(1,0), x={1}", ((0, 2), (4, 6), (1, 3), (5, 7))),
        (
            "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_2'}, dimensions={0}",
            ((0, 1), (2, 3), (4, 5), (6, 7)),
        ),
        (
            "replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0'}",
            ((0, 2), (1, 3), (4, 6), (5, 7)),
        ),
    ],
)
def test_who_sends_to_whom(text, groups):
    line = f"  %x.1 = f32[8]{{0}} all-reduce(%a), channel_id=1, {text}"
    (found,) = hlo.exchanges(hlo.Module(f"ENTRY %main (a: f32[8]) -> f32[8] {{\n{line}\n}}"))
    assert {tuple(sorted(g)) for g in found.groups} == {tuple(sorted(g)) for g in groups}
    assert len(found.groups) == len(groups)
