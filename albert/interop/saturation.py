"""Whether ONNX Runtime multiplies weights of 8 bits rightly on this CPU. Never imports jax or onnx.

Without VNNI (AMD before Zen 4, Intel before Cascade Lake) x86 has one instruction that multiplies
unsigned by signed bytes and adds two such products in 16 bits; what is over is cut off: 2 x 255 x
127 becomes 32,767 in place of 64,770. ONNX Runtime uses it, and says so nowhere.
"""

import functools
import importlib.util

import numpy as np

# A graph of one MatMulInteger of a, uint8 [1, 2], and b, int8 [2, 1]; a test makes it with onnx.
_GRAPH = (
    b'\x08\x08:\\\n\x18\n\x01a\n\x01b\x12\x01c"\rMatMulInteger\x12\x01gZ\x13\n\x01a\x12\x0e\n\x0c'
    b"\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x02Z\x13\n\x01b\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02"
    b"\x08\x02\n\x02\x08\x01b\x13\n\x01c\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01B"
    b"\x04\n\x00\x10\n"
)
WHY = (
    "this CPU has no VNNI, and ONNX Runtime cuts off sums of two products of 8 bits on it, so that "
    "outputs would be wrong"
)


@functools.cache
def saturates() -> bool:
    """Whether sums of two products of 8 bits are cut off here; no where there is no onnxruntime,
    since whoever opens a program says so."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    session = onnxruntime.InferenceSession(_GRAPH, providers=["CPUExecutionProvider"])
    a, b = np.full((1, 2), 255, np.uint8), np.full((2, 1), 127, np.int8)
    return int(session.run(None, {"a": a, "b": b})[0][0, 0]) != 2 * 255 * 127
