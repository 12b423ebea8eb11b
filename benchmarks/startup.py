"""How long does one wait before anything happens? Seconds of a process's start, wall clock and CPU.

    python benchmarks/startup.py [-c CONFIG] [--workers 4] [--json FILE]

Every script's --help, the first batch of a loader with workers beside one `import torch, cv2`, and a training from the
command to its first step and its first evaluation. CONFIG (default: the quickstart's) draws or holds small data.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_FIRST_BATCH = """
import time
from engine.config import load_config
from data.splits import build_datasets
from data.loader import build_train_loader
config = load_config({config!r}, ["train_dataloader.num_workers={workers}"])
data = build_datasets(config, ("train",))
loader = build_train_loader(config, data.splits["train"], data.classes, seed=0)
started = time.perf_counter()
next(iter(loader))
print(time.perf_counter() - started)
loader.close()
"""


def timed(command: list[str], until: Callable[[], bool] | None = None) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command, or wall-clock until something is there (the command is then ended)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while until is not None and process.poll() is None and not until():
        time.sleep(0.05)
    wall = time.perf_counter() - started
    if until is not None:
        process.terminate()
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (wall if until else time.perf_counter() - started), cpu


def first_batch(config: Path, workers: int) -> float:
    """Seconds from asking a loader for a batch to having it, its workers' start included."""
    script = _FIRST_BATCH.format(config=str(config), workers=workers)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _says(log: Path, key: str) -> bool:
    return log.exists() and key in log.read_text(encoding="utf-8")


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", type=Path, default=ROOT / "configs/quickstart.yml")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(command)
    python, rows = sys.executable, {}

    def say(what: str, wall: float, cpu: float | None = None) -> None:
        rows[what] = {"wall_seconds": wall, "cpu_seconds": cpu}
        print(f"{what:40}{wall:8.2f} s wall" + ("" if cpu is None else f"{cpu:8.2f} s CPU"), flush=True)

    for script in sorted(ROOT.glob("*.py")):
        say(f"{script.name} --help", *timed([python, str(script), "--help"]))
    say("import torch, cv2", *timed([python, "-c", "import torch, cv2"]))
    say(f"first batch, {arguments.workers} workers", first_batch(arguments.config, arguments.workers))
    with tempfile.TemporaryDirectory() as folder:
        for what, key in (("step", '"loss'), ("evaluation", '"AP')):
            log = Path(folder, what, "log.jsonl")
            train = [python, "train_deimv2.py", "-c", str(arguments.config), "--output-dir", str(log.parent), "-u"]
            train += ["print_freq=1", "eval_interval_epochs=1", f"train_dataloader.num_workers={arguments.workers}"]
            say(f"training to its first {what}", *timed(train, partial(_says, log, key)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
