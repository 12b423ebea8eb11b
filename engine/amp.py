"""Mixed precision: which type, on which device."""

import logging

import torch

log = logging.getLogger(__name__)


def choose_amp_dtype(use_amp: bool, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the GPU has it, else float16; None without AMP. A CPU computes in float32, and says so."""
    if not use_amp:
        return None
    if device.type != "cuda":
        log.info("use_amp: off on a CPU, computing in float32")
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
