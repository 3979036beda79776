"""What a run measures of itself: time and memory of its steps, and the machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bridger._json import read_json, save_json

PROCESS, CPU = Path("/proc/self"), Path("/proc/cpuinfo")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


class Meters(TrainerCallback):  # type: ignore[misc]
    """Watches a training, over all the sittings that it takes.

    Seconds of a step are of forward, backward and update, without making the batch; where there is
    no GPU, of the process's time on processors by its threads, since trainings at once slow each
    other down.

    Args:
        file: where it keeps what it knows whenever the training saves a checkpoint.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seconds: list[float] = []
        self._spent, self._since, self._started = 0.0, time.perf_counter(), 0.0
        self._before = self._peak = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from what was known at the checkpoint, and note the memory before."""
        if state.global_step and self.file.is_file():
            kept = read_json(self.file)
            self._seconds = kept["steps"][: state.global_step]
            self._spent, self._peak = kept["spent"], kept["peak"]
        self._before = _start_memory()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = _clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self._seconds.append(_clock() - self._started)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Keep what is known."""
        kept = {"steps": self._seconds, "spent": self.spent, "peak": self.peak}
        save_json(self.file, kept)

    @property
    def step(self) -> float | None:
        """The median seconds of a step; None where none was watched."""
        return statistics.median(self._seconds) if self._seconds else None

    @property
    def spent(self) -> float:
        """Seconds of all sittings so far, without what came after their last checkpoints."""
        return self._spent + time.perf_counter() - self._since

    @property
    def peak(self) -> int:
        """Most bytes of any sitting: of a GPU what torch had given out, else resident memory."""
        return max(self._peak, _peak_memory())

    def told(self) -> dict[str, Any]:
        """Return what is known, as a run's result has it; call it once the training is over."""
        return {
            "steps": len(self._seconds),
            "seconds": {"step": self.step, "training": self.spent},
            "memory": {"loaded": self._before, "peak": self.peak},
        }


def environment() -> dict[str, Any]:
    """Return the machine and the libraries."""
    from importlib.metadata import version

    libraries = ("torch", "transformers", "peft", "open_clip_torch", "bridger-peft")
    return {
        "machine": _machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def _machine() -> str:
    if torch.accelerator.is_available():
        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return str(torch.accelerator.current_accelerator())
    name, flags = processor()
    return name + (f" ({' '.join(flags)})" if flags else "")


def processor() -> tuple[str, list[str]]:
    """Return the model and number of the processors, and which of `FLAGS` they know."""
    lines = CPU.read_text().splitlines() if CPU.is_file() else []
    known = {key.strip(): value.strip() for key, _, value in (n.partition(":") for n in lines)}
    name = known.get("model name") or platform.processor() or platform.machine()
    found = known.get("flags", "").split()
    return f"{name} x {os.cpu_count()}", [flag for flag in FLAGS if flag in found]


def _clock() -> float:
    """Return seconds, those of the processors where there is no GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def _start_memory() -> int:
    """Let the count of the peak begin anew; return the level."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        (PROCESS / "clear_refs").write_text("5")
        pages = int((PROCESS / "statm").read_text().split()[1])
    except OSError:  # not Linux, or not allowed
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = (PROCESS / "status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # not known on Windows
        return 0
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
