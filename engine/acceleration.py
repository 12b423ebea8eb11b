"""Mixed precision and torch.compile: on which device, for which models, and what is said where there is none."""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.utils._triton import has_triton

from models.detector import DEIM

log = logging.getLogger(__name__)


def choose_amp_dtype(use_amp: bool, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the GPU has it, else float16; None without AMP. A CPU computes in float32, and says so."""
    if not use_amp:
        return None
    if device.type != "cuda":
        log.info("use_amp: off on a CPU, computing in float32")
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def compiler(model: nn.Module, device: torch.device) -> str | None:
    """The backend of torch.compile for `model`; warns where a compiler or anything else it needs is missing.

    Returns:
        `inductor`; on a GPU without Triton `cudagraphs`, which launches the same operations all at once; None: nothing.
    """
    reason = _hindrance(model, device)
    if reason is not None:
        log.warning("not compiled: %s; everything is computed as without", reason)
        return None
    if device.type != "cuda" or has_triton():
        return "inductor"
    log.warning("compiled into CUDA graphs alone: Triton is missing (on Windows: pip install triton-windows)")
    return "cudagraphs"


def _hindrance(model: nn.Module, device: torch.device) -> str | None:
    if not isinstance(model, DEIM):
        return "the shapes inside a baseline depend on what it sees"
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return "sync_bn: True makes processes talk within the network; set it to False"
    if device.type == "cuda":
        return None
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds to load
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler (g++, clang, or Visual Studio's cl)"
    return None
