"""What all benchmarks measure with: alternated timings, peak memory, the machine, and tables.

timings = alternate({"one": first, "other": second}, rounds=10, warmups=2, device="cpu")
timings["one"].median, timings["one"].ratio(timings["other"])
peak_memory(first, "cpu").resident
print(machine_line(), table(rows, ["name", "median s"]), sep="\n")
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bridger.studies.meters import processor

Call = Callable[[], Any]
PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Timing:
    """The seconds of each round of one case, their median and quartiles."""

    seconds: tuple[float, ...]
    low: float = field(init=False)
    median: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        several = self.seconds if len(self.seconds) > 1 else [*self.seconds, *self.seconds]
        quartiles = statistics.quantiles(several, n=4, method="inclusive")
        for name, value in zip(("low", "median", "high"), quartiles, strict=True):
            object.__setattr__(self, name, value)

    def ratio(self, reference: Timing) -> float:
        """Return the median over rounds of this case's seconds to the reference's.

        What slows down both cases of a round leaves it alone; both come from one `alternate`.
        """
        rounds = zip(self.seconds, reference.seconds, strict=True)
        return statistics.median(own / other for own, other in rounds)


def alternate(
    cases: Mapping[str, Call], rounds: int, warmups: int = 1, device: torch.device | str = "cpu"
) -> dict[str, Timing]:
    """Time cases in turn: A, B, A, B, ... so that a busy machine slows all of them down.

    Garbage is collected between the timed calls alone; what they return is let go after them.

    Args:
        cases: functions without arguments, by name.
        rounds: timed calls of each case.
        warmups: calls of each case before them.
        device: that the calls use; a GPU is waited for.

    Returns:
        The seconds by case.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    gc.disable()
    try:
        for index in range(warmups + rounds):
            for name, call in cases.items():
                gc.collect()
                synchronize(device)
                start = time.perf_counter()
                result = call()
                synchronize(device)
                if index >= warmups:
                    seconds[name].append(time.perf_counter() - start)
                del result
    finally:
        gc.enable()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def synchronize(device: torch.device | str) -> None:
    """Wait for a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Peak:
    """The most bytes that one call had above the level before it.

    Attributes:
        tensors: what torch's allocator had given out at one time; on a CPU what operations within
            the call made and still was alive, without kernels' own scratch space.
        resident: of the process, on a CPU with Linux, else None. What the C library keeps of freed
            memory is in it.
    """

    tensors: int
    resident: int | None


def peak_memory(call: Call, device: torch.device | str = "cpu") -> Peak:
    """Measure the peak memory of a call above the level before; run it once before for warmth.

    On a CPU it runs twice, once for each count: counting tensors takes memory too.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return Peak(torch.cuda.max_memory_allocated(device) - before, None)
    resident = _resident_peak(call) if PROCESS.exists() else None
    gc.collect()
    return Peak(_live_tensors_peak(call), resident)


def _resident_peak(call: Call) -> int:
    """Return the peak of resident memory above the level, after free memory was given back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    before = _resident()
    try:
        (PROCESS / "clear_refs").write_text("5")  # the kernel's mark of the peak starts anew
    except OSError:  # not allowed in some containers
        return _sampled_peak(call) - before
    call()
    return int((PROCESS / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024 - before


def _resident() -> int:
    return int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _sampled_peak(call: Call) -> int:
    """Return the most resident memory that a look every millisecond found."""
    done, found = threading.Event(), [_resident()]

    def look() -> None:
        while not done.wait(0.001):
            found[0] = max(found[0], _resident())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(found[0], _resident())


def _live_tensors_peak(call: Call) -> int:
    with _LiveTensors() as counted:
        call()
    return counted.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of living tensors that operations made, whatever thread they ran in.

    Bridged runs carry it into the towers' threads; torch's profiler counts memory in the thread
    alone that opened it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # else a view, or written in place
                weakref.finalize(storage, self._add, -storage.nbytes())
                self._add(storage.nbytes())
        return result

    def _add(self, count: int) -> None:
        self.live += count
        self.peak = max(self.peak, self.live)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def largest(fits: Callable[[int], bool], limit: int = 4096, within: float = 0.0) -> int:
    """Return the largest number up to `limit` that fits, by doubling and halving; 0 for none.

    It ends where one does not fit that is larger by 1, or by this share (`within`).
    """
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > max(1, within * good):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def random_clip(name: str, **options: Any) -> Any:
    """Build one of open_clip's models with random weights, of which it would warn."""
    import open_clip

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(name, **options)
    finally:
        logging.disable(before)


def in_child(script: str, arguments: Sequence[str]) -> Any:
    """Run a script in a process of its own; return the JSON of its last line of output."""
    command = [sys.executable, script, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def cpu_name() -> str:
    """Return the model and number of processors."""
    return processor()[0]


def machine() -> dict[str, Any]:
    """Return what figures depend on: processors, GPU, threads, versions, and the load."""
    cpu, flags = processor()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cpu_flags": flags,
        "gpu": gpu and f"{gpu} (CUDA {torch.version.cuda})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def machine_line() -> str:
    """Write `machine` in one line."""
    facts = machine()
    devices = filter(None, (facts["gpu"], f"{facts['cpu']} ({' '.join(facts['cpu_flags'])})"))
    named = (f"{name} {facts[name]}" for name in ("threads", "torch", "python", "load"))
    return ", ".join([*devices, *named])


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Write rows as a Markdown table; what is absent or None becomes a dash."""
    lines = [list(columns), *([_cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(3, *map(len, cells)) for cells in zip(*lines, strict=True)]
    numeric = [any(isinstance(row.get(c), (int, float)) for row in rows) for c in columns]
    forms = [f"{{:{'<>'[n]}{width}}}" for n, width in zip(numeric, widths, strict=True)]
    lines.insert(1, ["-" * (w - 1) + "-:"[n] for n, w in zip(numeric, widths, strict=True)])
    return "\n".join("| " + " | ".join(forms).format(*cells) + " |" for cells in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def write_json(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write results and, beside them, the machine; timings and peaks become plain values."""
    Path(path).write_text(json.dumps({"machine": machine(), **results}, indent=2, default=asdict))
