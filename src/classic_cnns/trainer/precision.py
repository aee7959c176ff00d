"""In which numbers a run multiplies, where its config leaves that open."""

import torch


def choose(wanted: str, accelerator: str) -> str:
    """Lightning's name of a precision: what is `wanted`, and for auto the fastest that is native.

    That is bfloat16 where the processor or GPU multiplies it itself, and float32 elsewhere: without
    such a unit bfloat16 takes twice the time of float32.
    """
    if wanted != "auto":
        return wanted
    if accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        native = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    return "bf16-mixed" if native else "32-true"
