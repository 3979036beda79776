"""Making runs in several processes at once, so that a killed study goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridger.studies.store import LOG_FILE, Plan, Store

PERFORM = (sys.executable, "-m", "bridger.studies.perform")
WAIT = 0.2  # seconds between looks at the processes
PATIENCE = 60  # seconds that a run has to save what it trained

Report = Callable[[int, int, float | None], None]
"""Called with how many runs are finished, of how many, and about how many seconds are left."""


@dataclass(frozen=True)
class Machine:
    """How many runs are made at once, and on what.

    Attributes:
        jobs: processes at once.
        threads: of each, on processors. One: then the same seed gives the same bits, whatever else
            runs beside it, and two processes do more than one with two threads.
        devices: names of the GPUs that processes take in turn, as CUDA_VISIBLE_DEVICES has them;
            none: processes see what this one sees.
        use_cpu: leave GPUs alone.
    """

    jobs: int
    threads: int
    devices: tuple[str, ...] = ()
    use_cpu: bool = False

    @classmethod
    def here(cls, jobs: int | None = None, use_cpu: bool = False) -> Machine:
        """Return what this machine offers: a run for each GPU, or for each core.

        Args:
            jobs: another number of processes.
            use_cpu: leave GPUs alone.
        """
        import torch

        cores = _cores()
        if use_cpu or not torch.accelerator.is_available():
            return cls(jobs or cores, 1, use_cpu=use_cpu)
        count = torch.accelerator.device_count()
        names: tuple[str, ...] = ()
        if torch.cuda.is_available():
            shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            names = tuple(shown.split(","))[:count] if shown else tuple(map(str, range(count)))
        jobs = jobs or count
        return cls(jobs, max(1, cores // jobs), names)

    def variables(self, slot: int) -> dict[str, str]:
        """Return the environment of the process in a slot, from 0."""
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.use_cpu:  # so that the run's meters read the processor's clock and memory too
            variables["CUDA_VISIBLE_DEVICES"] = ""
        elif self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return variables


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class RunFailed(RuntimeError):
    """Some runs of a study ended with an error; all others were made."""


def run_all(
    plans: Sequence[Plan],
    store: Store,
    machine: Machine,
    report: Report | None = None,
    imports: Sequence[str] = (),
) -> None:
    """Make the runs that are not finished, in this order.

    Args:
        plans: the runs.
        store: where they go.
        machine: how many at once.
        report: is told how far it is.
        imports: modules of the user's own that every process imports first.

    Raises:
        RunFailed: some ended with an error; the others were made first.
        KeyboardInterrupt: Ctrl-C; trainings at work have saved a checkpoint.
    """
    waiting = list(
        {store.folder(plan): plan for plan in plans if store.find(plan) is None}.values()
    )
    pool = _Pool(store, machine, imports)
    progress = _Progress(len(plans), len(waiting), machine.jobs, report)
    try:
        while waiting or pool.busy:
            while waiting and pool.free:
                pool.start(waiting.pop(0))
            ended = pool.ended()
            if ended:
                progress.add(ended)
            else:
                time.sleep(WAIT)
    except BaseException:
        pool.stop()
        raise
    if pool.failed:
        named = "\n".join(f"  {setting}: {why}" for setting, why in pool.failed.items())
        raise RunFailed(f"{len(pool.failed)} runs ended with an error:\n{named}")


@dataclass(frozen=True)
class _AtWork:
    """A process that makes a run.

    Attributes:
        process: itself.
        plan: of the run.
        since: when it began.
        said: bytes of the log before it.
    """

    process: subprocess.Popen[bytes]
    plan: Plan
    since: float
    said: int


class _Pool:
    """The processes at work."""

    def __init__(self, store: Store, machine: Machine, imports: Sequence[str]) -> None:
        self.store, self.machine, self.imports = store, machine, imports
        self.slots: dict[int, _AtWork] = {}
        self.failed: dict[str, str] = {}

    @property
    def busy(self) -> bool:
        return bool(self.slots)

    @property
    def free(self) -> bool:
        return len(self.slots) < self.machine.jobs

    def start(self, plan: Plan) -> None:
        slot = next(slot for slot in range(self.machine.jobs) if slot not in self.slots)
        folder = self.store.prepare(plan)
        command = [*PERFORM, str(folder), *self.imports]
        with (folder / LOG_FILE).open("ab") as log:
            log.seek(0, os.SEEK_END)
            said = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.machine.variables(slot),
                start_new_session=True,  # a Ctrl-C at the terminal is handed on once, by `stop`
            )
        self.slots[slot] = _AtWork(process, plan, time.monotonic(), said)

    def ended(self) -> list[float]:
        """Return the seconds of the processes that have ended since."""
        seconds = []
        for slot, work in list(self.slots.items()):
            code = work.process.poll()
            if code is None:
                continue
            del self.slots[slot]
            seconds.append(time.monotonic() - work.since)
            if self.store.find(work.plan) is None:
                name = f"{work.plan.setting}, seed {work.plan.seed}"
                self.failed[name] = _why(self.store.folder(work.plan), code, work.said)
        return seconds

    def stop(self) -> None:
        """Interrupt all processes, which then save, and wait for them."""
        for work in self.slots.values():
            if os.name == "nt":
                work.process.terminate()
            else:
                work.process.send_signal(signal.SIGINT)
        for work in self.slots.values():
            try:
                work.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                work.process.kill()


class _Progress:
    """Counts runs, and guesses from those of this call how long the rest will take."""

    def __init__(self, count: int, left: int, jobs: int, report: Report | None) -> None:
        self.count, self.left, self.jobs, self.report = count, left, jobs, report
        self.seconds: list[float] = []
        self._tell()

    def add(self, seconds: list[float]) -> None:
        """Count runs that took so many seconds each."""
        self.seconds += seconds
        self.left -= len(seconds)
        self._tell()

    def _tell(self) -> None:
        if self.report is None:
            return
        rounds = self.left / self.jobs
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else None
        self.report(self.count - self.left, self.count, None if mean is None else rounds * mean)


def _why(folder: Path, code: int, said: int) -> str:
    """Return how a failed run ended, the last line that it wrote, and where the others are."""
    log = folder / LOG_FILE
    text = log.read_bytes()[said:].decode("utf-8", "replace")
    last = next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")
    killed = f"killed by signal {-code}" if code < 0 else ""
    told = "; ".join(part for part in (killed, last) if part) or "it said nothing"
    return f"{told} ({log})"
