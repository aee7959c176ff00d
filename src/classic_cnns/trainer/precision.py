"""The choice of a precision for `trainer.precision=auto`."""

import torch


def choose(wanted: str, accelerator: str) -> str:
    """Lightning's name of a precision: `wanted`, or for "auto" the fastest native one.

    That is bfloat16 if the processor or GPU has instructions for it, else float32: without them
    bfloat16 takes twice as long as float32.
    """
    if wanted != "auto":
        return wanted
    if accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        native = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    return "bf16-mixed" if native else "32-true"
