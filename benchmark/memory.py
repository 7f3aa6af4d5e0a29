"""Peak memory of a stage: of the accelerator where there is one, else of this process. Torch is loaded by others."""

from __future__ import annotations

import sys
from pathlib import Path

_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_highest = 0  # of all that was read: resets hide it


def reset() -> None:
    """Start a stage: peaks count from here, where the system can forget earlier ones (Linux and CUDA can)."""
    _resident()
    try:
        _REFS.write_text("5")  # proc(5): 5 resets the peak resident set size
    except OSError:
        pass  # the peak then is the process's so far
    if _cuda():
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """Bytes: the accelerator's peak since `reset`; on the CPU, the process's peak resident memory since then."""
    if not _cuda():
        return _resident()
    import torch

    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def overall() -> int:
    """Bytes: the peak resident memory of the whole process, whatever was reset."""
    _resident()
    return _highest


def used() -> int:
    """Bytes in use now: of the accelerator where one is used, else resident. Nothing is waited for or reset."""
    if _cuda():
        import torch

        return torch.cuda.memory_allocated()
    return _status("VmRSS:") or _read()


def exhausted(error: BaseException) -> bool:
    """Whether the error is want of memory, of the machine or of an accelerator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _resident() -> int:
    global _highest
    found = _read()
    _highest = max(_highest, found)
    return found


def _read() -> int:
    if found := _status("VmHWM:"):
        return found
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kibibytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int | None:
    """Bytes that Linux tells of this process; None elsewhere."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    except (OSError, StopIteration, ValueError):
        return None
