"""Attention kernels by name: what `model.attention` chooses from.

A kernel is one file here with a `KERNEL`, and one line in `KERNELS`. It says itself what it cannot
serve; a config that asks for that is refused, naming the kernels that would work.
"""

from albert.models.attention import xla
from albert.models.attention.base import Kernel, Use

KERNELS: dict[str, Kernel] = {"xla": xla.KERNEL}


def attention_problems(name: str, use: Use) -> list[str]:
    """Why a kernel cannot serve a run, one sentence each, and which kernels can."""
    able = [other for other, kernel in KERNELS.items() if not kernel.problems(use)]
    return [
        f"attention is {name!r}, and {text}; {', '.join(able) or 'none'} would work"
        for text in KERNELS[name].problems(use)
    ]
