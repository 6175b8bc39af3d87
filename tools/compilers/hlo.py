"""Reading an optimised HLO module: what it sends, moves, keeps and multiplies.

Figures are of one run of the program on one device: what stands in the body of a loop counts as
often as it turns.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_ITEM = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that name memory and move none.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "iota",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
}
_FUSED_ATTENTION = re.compile(r"__cudnn\$fmha|tpu_custom_call")


class Array(NamedTuple):
    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return _ITEM[self.dtype] * math.prod(self.dims)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    name: str
    arrays: tuple[Array, ...]  # of the result, which may be a tuple
    kind: str  # "fusion", "dot", "while", ...
    operands: tuple[str, ...]
    line: str

    @property
    def source(self) -> str:
        """What it comes from in the program that was traced."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else self.name


class Module:
    """An HLO module by computations: name -> its instructions, in order."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = name = ""
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
                name = head[2]
                self.entry = name if head[1] else self.entry
                self.computations[name] = []
            elif name and (one := _instruction(line)):
                self.computations[name].append(one)

    def callees(self, one: Instruction) -> list[str]:
        """The computations that an instruction calls, the condition of a loop left out."""
        names = re.findall(r"(?:calls|body|to_apply)=%?([\w.-]+)", one.line)
        for group in re.findall(r"(?:branch_computations|called_computations)={([^}]*)}", one.line):
            names += [name.strip().lstrip("%") for name in group.split(",")]
        return [name for name in names if name in self.computations]

    def running(self, turns: int | None = None) -> Iterator[tuple[str, int | None]]:
        """Computations whose instructions are run one by one, and how often: the entry, bodies of
        loops and branches, but not what is fused into one instruction.

        `turns`: of loops whose line does not say how often they turn, as the TPU compiler's do not.
        None: what is in them runs None times.
        """

        def of(name: str, times: int | None) -> Iterator[tuple[str, int | None]]:
            yield name, times
            for one in self.computations[name]:
                if one.kind not in ("while", "call", "conditional", "async-start"):
                    continue
                often = times
                if one.kind == "while":
                    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.line)
                    number = int(said[1]) if said else turns
                    often = often * number if often and number else None
                for callee in self.callees(one):
                    yield from of(callee, often)

        yield from of(self.entry, 1)

    def inside(self, one: Instruction) -> Iterator[tuple[str, Instruction]]:
        """An instruction and all that is fused into it, each with its computation's name."""
        for name in self.callees(one):
            for inner in self.computations[name]:
                yield name, inner
                yield from self.inside(inner)

    def loops(self) -> list[tuple[Instruction, str]]:
        """Every loop and the name of its body, in order."""
        return [
            (one, self.callees(one)[0])
            for name in self.computations
            for one in self.computations[name]
            if one.kind == "while"
        ]


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    # The result's shape ends in front of the first word that is followed by "(".
    call = re.match(r"(\((?:[^()]|\([^()]*\))*\)|\S+)\s+([\w-]+)\((.*)", rest)
    if not call:
        return None
    shape, kind, tail = call.groups()
    operands = tuple(re.findall(r"%([\w.-]+)", _up_to_closing(tail)))
    return Instruction(head[1], _arrays(shape), kind, operands, line)


def _up_to_closing(tail: str) -> str:
    """What stands in front of the bracket that closes one opened before."""
    depth = 1
    for place, letter in enumerate(tail):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return tail[:place]
    return tail


def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(d) for d in dims.split(",") if d))
        for dtype, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
        if dtype in _ITEM
    )


@dataclasses.dataclass
class Figures:
    """What a module does; bytes and numbers as the file says above."""

    exchanged: dict[str, dict[str, int]]  # kind of collective -> number, bytes
    exchanged_in_loops: list[str]  # those of them that stand in a loop, and what they come from
    moved_in_layers: int  # bytes read and written in the two loops over the depth, all turns
    moved: int  # in the whole program
    moved_beside_products: int  # of it, by instructions that multiply no matrices
    kept: int  # bytes of the stacks that the first of them fills for the second
    float32_products: list[str]  # what they come from, and how large their operands are
    products: int  # how many there are in the text
    fused_attention: int  # calls in the text of a fused kernel
    arrays: dict[str, str]  # those of over a megabyte, by size, and what they come from
    lines: int  # of the text


def figures(text: str, depth: int) -> Figures:
    """Of the module of a training step with so many layers."""
    module = Module(text)
    of_layers = {body for _, body in layer_loops(module, depth)}
    moved = moved_in_layers = beside = 0
    for name, times in module.running(depth):
        for one, size in movements(module, name):
            size *= times or 0
            moved += size
            moved_in_layers += size if name in of_layers else 0
            beside += 0 if _multiplies(module, one) else size
    every = list(products(module))
    arrays: dict[str, tuple[int, str]] = {}
    for name, _ in module.running(depth):
        for one in module.computations[name]:
            if one.kind in _FREE or one.kind == "while":
                continue
            for array in one.arrays:
                arrays.setdefault(str(array), (array.size, one.source))
    large = sorted((-size, name) for name, (size, _) in arrays.items() if size > 2**20)
    return Figures(
        exchanged=_by_kind(module, depth),
        exchanged_in_loops=[
            f"{one.kind} {' '.join(map(str, one.arrays))}: {one.source}"
            for one in exchanges(module, depth)
            if one.times != 1
        ],
        moved_in_layers=moved_in_layers,
        moved=moved,
        moved_beside_products=beside,
        kept=sum(array.size for array in kept(module, depth)),
        float32_products=[
            f"{one.source}: {' x '.join(map(str, sides))}"
            for one, sides in every
            if {"f32", "f64"} & {side.dtype for side in sides}
        ],
        products=len(every),
        fused_attention=sum(
            one.kind == "custom-call" and bool(_FUSED_ATTENTION.search(one.line))
            for instructions in module.computations.values()
            for one in instructions
        ),
        arrays={name: arrays[name][1] for _, name in large},
        lines=text.count("\n"),
    )


def layer_loops(module: Module, depth: int) -> list[tuple[Instruction, str]]:
    """The loops over the depth, by their stacks: [depth, ...] with more than one axis behind."""
    return [
        (loop, body)
        for loop, body in module.loops()
        if any(array.dims[:1] == (depth,) and len(array.dims) > 3 for array in loop.arrays)
    ]


def kept(module: Module, depth: int) -> list[Array]:
    """The stacks that the forward loop over the depth fills: those that its body updates."""
    loops = layer_loops(module, depth)
    if not loops:
        return []
    loop, body = loops[0]
    instructions = {one.name: one for one in module.computations[body]}
    root = module.computations[body][-1]
    found = []
    for array, operand in zip(loop.arrays, root.operands, strict=True):
        one = instructions[operand]
        if array.dims[:1] != (depth,) or one.kind in ("get-tuple-element", "parameter"):
            # A stack that is fused into several results stands behind an element of its tuple.
            behind = instructions.get(one.operands[0]) if one.operands else None
            if array.dims[:1] != (depth,) or behind is None or behind.kind == "parameter":
                continue
        found.append(array)
    return found


def moved_bytes(module: Module, name: str) -> int:
    """Bytes that the instructions of a computation read and write; see `movements`."""
    return sum(size for _, size in movements(module, name))


def movements(module: Module, name: str) -> Iterator[tuple[Instruction, int]]:
    """Every instruction of a computation and the bytes that it reads and writes, those of loops and
    branches left out, which are computations of their own.

    What a fusion slices out of an operand, or updates of it, counts by the slice.
    """
    of = {one.name: one for one in module.computations[name]}
    for one in module.computations[name]:
        if one.kind in _FREE or one.kind in ("while", "call", "conditional"):
            continue
        if one.kind.endswith("-done") or one.kind.endswith("-update-start"):
            continue
        callees = module.callees(one)
        fused = {c.name: c for c in module.computations[callees[0]]} if callees else {}
        read = written = 0
        for number, operand in enumerate(one.operands):
            if operand not in of:
                continue
            whole = sum(array.size for array in of[operand].arrays)
            read += _read_of(fused, number, whole)
        results = one.arrays
        if one.kind.endswith("-start"):
            results = results[len(one.operands) : len(one.operands) + 1]
        for array in results:
            written += _written_of(fused, array)
        if one.kind == "dynamic-slice":
            read = written
        elif one.kind == "dynamic-update-slice":
            read = written = sum(a.size for a in of[one.operands[1]].arrays)
        yield one, read + written


def _multiplies(module: Module, one: Instruction) -> bool:
    """Whether it is a product of matrices, a fusion with one, or fused attention."""
    if one.kind == "custom-call":
        return "gemm" in one.line or bool(_FUSED_ATTENTION.search(one.line))
    return any(i.kind in ("dot", "convolution") for i in (one, *(i for _, i in module.inside(one))))


def _read_of(fused: dict[str, Instruction], number: int, whole: int) -> int:
    """Bytes read of operand `number` of a fusion: those of its slices if it is only sliced, none if
    it is only updated."""
    if not fused:
        return whole
    mark = f" parameter({number})"
    names = {one.name for one in fused.values() if mark in one.line}
    users = []
    for one in fused.values():
        if names & set(one.operands):
            if one.kind == "bitcast":
                names.add(one.name)
            else:
                users.append(one)
    if users and all(
        one.kind in ("dynamic-slice", "slice", "dynamic-update-slice") and one.operands[0] in names
        for one in users
    ):
        sliced = [one for one in users if one.kind != "dynamic-update-slice"]
        return sum(array.size for one in sliced for array in one.arrays)
    return whole


def _written_of(fused: dict[str, Instruction], array: Array) -> int:
    """Bytes written of a result: of the update if it is an operand, updated in place."""
    for inner in fused.values():
        if inner.kind == "dynamic-update-slice" and inner.arrays[0].size == array.size:
            update = fused.get(inner.operands[1])
            return sum(a.size for a in update.arrays) if update else array.size
    return array.size


def products(module: Module) -> Iterator[tuple[Instruction, tuple[Array, ...]]]:
    """Every product of matrices, in fusions too, and the arrays that it multiplies.

    A product by vectors, whose result is no matrix on both sides, is left out.
    """
    for instructions in module.computations.values():
        of = {one.name: one for one in instructions}
        for one in instructions:
            gemm = one.kind == "custom-call" and "gemm" in one.line
            if one.kind not in ("dot", "convolution") and not gemm:
                continue
            sides = tuple(of[o].arrays[0] for o in one.operands[:2] if o in of and of[o].arrays)
            yield one, sides


class Exchange(NamedTuple):
    """A collective operation."""

    kind: str  # of COLLECTIVES
    arrays: tuple[Array, ...]  # its results
    times: int | None  # how often it is run; 1: it stands in no loop
    source: str  # what it comes from in the program that was traced
    groups: tuple[tuple[int, ...], ...]  # devices that exchange with each other; none: all

    @property
    def size(self) -> int:
        """Bytes of the results, each time."""
        return sum(array.size for array in self.arrays)


def exchanges(module: Module, turns: int | None = None) -> list[Exchange]:
    """Every collective operation of a module.

    Asynchronous ones count once, where they start, without the operands that a start gives as well
    as the results. One that the TPU compiler fuses piece by piece into other work,
    which may stand in a loop, is begun once, by its first piece.

    `turns`: see `Module.running`.
    """
    found = []
    begun = set()
    for name, times in module.running(turns):
        for one in module.computations[name]:
            fused = module.inside(one) if one.kind == "fusion" else ()
            for inner in (one, *(inner for _, inner in fused)):
                kind = inner.kind.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = re.search(r"channel_id=(\d+)", inner.line)
                if inner is not one and channel:
                    if channel[1] in begun:
                        continue
                    begun.add(channel[1])
                arrays = inner.arrays
                if inner.kind != kind and kind != "all-reduce":
                    arrays = arrays[len(inner.operands) : 2 * len(inner.operands)]
                groups = _groups(inner.line)
                found.append(Exchange(kind, arrays, times, inner.source, groups))
    return found


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    """The devices of a collective that exchange with each other; empty: all with all.

    XLA writes them out, {{0,1},{2,3}}, of a permutation the pairs; or as numbers counted up,
    reshaped and transposed, whose rows they are, [2,4]<=[4,2]T(1,0); or as a mesh of such numbers
    and the axes along which is sent, mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}.
    """
    said = re.search(r"(?:replica_groups|source_target_pairs)=(.*)", line)
    if not said or re.match(r"\{\}", said[1]):
        return ()
    if re.match(r"\{\{", said[1]):
        written = said[1][1 : said[1].index("}}") + 1]
        return tuple(
            tuple(int(n) for n in group.split(",") if n)
            for group in re.findall(r"\{([\d,]*)\}", written)
        )
    if rows := re.match(r"(\[[\d,]+\])<=(\[[\d,]+\])(T\([\d,]+\))?", said[1]):
        numbers = _counted(rows[2], rows[3]).reshape(_numbers(rows[1]))
        return tuple(map(tuple, numbers.tolist()))
    mesh = re.match(
        r"mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\])(T\([\d,]+\))?\))? \{([^}]*)\}", said[1]
    )
    if not mesh or ":" in mesh[4]:
        raise ValueError(f"groups of devices that are not understood: {said[1][:200]}")
    axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    shape = [int(size) for size in axes.values()]
    numbers = _counted(mesh[2] or f"[{math.prod(shape)}]", mesh[3]).reshape(shape)
    along = [list(axes).index(name) for name in re.findall(r"'([^']+)'", mesh[4])]
    together = math.prod(shape[axis] for axis in along)
    moved = np.moveaxis(numbers, along, range(-len(along), 0))
    return tuple(map(tuple, moved.reshape(-1, together).tolist()))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _counted(shape: str, order: str | None) -> np.ndarray:
    """0, 1, ... in this shape, then transposed."""
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(order)) if order else numbers


def exchanged(text: str, turns: int | None = None) -> dict[str, dict[str, int]]:
    """Collective operations of an optimised HLO module: kind -> number and bytes of their results.

    Args:
      text: the module.
      turns: of loops whose line does not say how often they turn; in a training step the one loop
        with collectives is that over the depth.

    Raises ValueError when that is needed and None.
    """
    return _by_kind(Module(text), turns)


def _by_kind(module: Module, turns: int | None) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for one in exchanges(module, turns):
        if one.times is None:
            raise ValueError(f"a loop with collectives of no known length: {one.source}")
        of_kind = found.setdefault(one.kind, {"number": 0, "bytes": 0})
        of_kind["number"] += one.times
        of_kind["bytes"] += one.times * one.size
    return found
