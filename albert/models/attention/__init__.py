"""Attention kernels by name: what `model.attention` chooses from.

A kernel is one file here with a `KERNEL`, and one line in `KERNELS`. It says itself what it cannot
serve; a config that asks for that is refused, naming the kernels that would work. `auto` takes the
fused kernel of the device where it can serve, and the plain one elsewhere.
"""

import jax

from albert.models.attention import cudnn, splash, xla
from albert.models.attention.base import Kernel, Use, Visible

KERNELS: dict[str, Kernel] = {"xla": xla.KERNEL, "cudnn": cudnn.KERNEL, "splash": splash.KERNEL}
AUTO = "auto"
_FUSED = {"gpu": "cudnn", "tpu": "splash"}  # by backend


def attention_problems(name: str, use: Use) -> list[str]:
    """Why a kernel cannot serve a run, one sentence each, and which kernels can."""
    if name == AUTO:
        return []
    able = [other for other, kernel in KERNELS.items() if not kernel.problems(use)]
    return [
        f"attention is {name!r}, and {text}; {', '.join(able) or 'none'} would work"
        for text in KERNELS[name].problems(use)
    ]


def choose(name: str, use: Use) -> tuple[str, str]:
    """The kernel of a config's name, and why it is that one."""
    if name != AUTO:
        return name, "model.attention says so"
    fused = _FUSED.get(use.backend or "")
    if fused is None:
        return "xla", f"there is no fused kernel for {use.backend}"
    if problems := KERNELS[fused].problems(use):
        return "xla", f"{fused} cannot serve: {'; '.join(problems)}"
    return fused, f"it is the fused kernel for {use.backend}"


def here(use: Use) -> Use:
    """The same on this machine."""
    backend = jax.default_backend()
    capability = jax.local_devices()[0].compute_capability if backend == "gpu" else ""
    return use._replace(backend=backend, capability=str(capability))


def candidates(name: str) -> tuple[str, ...]:
    """The kernels that a config's name may come to mean."""
    return ("xla", *sorted(set(_FUSED.values()))) if name == AUTO else (name,)


def prepare(name: str, use: Use, attention_mask, segment_ids=None, most: int = 1) -> Visible:
    """Who sees whom, for the kernel that is chosen; see `Kernel.prepare`."""
    kernel, _ = choose(name, use)
    return Visible(kernel, KERNELS[kernel].prepare(attention_mask, segment_ids, most))


def attend(q, k, v, visible: Visible, dropout=None):
    """softmax(q k^T / sqrt(D)) v by the kernel that `visible` was prepared for."""
    return KERNELS[visible.kernel].attend(q, k, v, visible.prepared, dropout)
