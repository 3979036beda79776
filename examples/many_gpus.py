"""The same training alone, on several GPUs, or on several CPU processes, by the same script.

    python examples/many_gpus.py
    torchrun --nproc-per-node 2 examples/many_gpus.py    # DDP: NCCL, or gloo on CPUs
    accelerate launch --num_processes 8 --use_fsdp --fsdp_version 2 examples/many_gpus.py

`batch_size` is that of an update, over all processes: each takes its share of it, losses and
BatchNorm are those of the whole, and so the run is that of one device up to rounding, which Adam
enlarges. DDP keeps the model in every process; FSDP2, which the last command chooses, spreads
towers and adapter over GPUs, for towers that do not fit into one (accelerate has none for CPUs).
The first process writes. Ctrl-C saves a checkpoint, and --resume goes on from it.
Two CPU processes are what the tests run: NCCL, and FSDP2 on GPUs, were not tried.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import PartialState

from bridger.data import RefCOCO
from bridger.data.scenes import write_scenes
from bridger.evaluation import evaluate
from bridger.training import Recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("many-gpus"))
    parser.add_argument("--towers", default="tiny", help="see bridger.load_towers")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16, help="of an update, over all devices")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--resume", action="store_true", help="go on after Ctrl-C")
    args = parser.parse_args()

    # Finds out from the launcher how many processes there are, and connects them.
    processes = PartialState(cpu=not torch.accelerator.is_available())
    data = args.out / "scenes"
    if processes.is_main_process and not data.exists():
        write_scenes(data, {"train": args.scenes, "val": max(4, args.scenes // 10)})
    processes.wait_for_everyone()

    changes = {"towers": args.towers, "steps": args.steps, "batch_size": args.batch_size}
    recipe = Recipe.preset("quickstart", evaluations=1, report_to=(), **changes)
    training, validation = RefCOCO(data, "train"), RefCOCO(data, "val")
    model = train(recipe, training, args.out / "adapter", validation=validation, resume=args.resume)
    figures = evaluate(model, validation).metrics()  # processes share it, and agree on the figures
    if processes.is_main_process:
        share = args.batch_size // processes.num_processes
        print(f"{processes.num_processes} processes, {share} of {args.batch_size} items each")
        print(f"mIoU {100 * figures['mIoU']:.4f} %, oIoU {100 * figures['oIoU']:.4f} %")
        print(f"saved {args.out / 'adapter'}")
    processes.destroy_process_group()


if __name__ == "__main__":
    main()
