"""How much faster slow learning is on several GPUs than on one.

Each number of GPUs is a run of its own of the trainer, with the same batch on every GPU: random
latents, the sizes of a trained model, in bfloat16, its steps as CUDA graphs. A ratio is windows a
second of all GPUs over the mean of one.

    python benchmarks/training_scaling.py --num-gpus 1 2 4

Without a GPU, `--device cpu` has processes share the CPU, which shows only that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.evaluation.results import Figure, merge_figures
from sfvgen_planner.evaluation.timing import SpeedConfig, timing_figure
from sfvgen_planner.evaluation.training_speed import TrainingSpeed
from sfvgen_planner.world_model import load_world_model

RATES = "SFVGEN_TRAINING_RATES"
"""Environment variable: the file that the processes of a run leave their rates in."""


def train(config: SpeedConfig, rates: Path) -> None:
    """One process of a run; the main one writes the rates."""
    speed = TrainingSpeed(load_world_model(config.model), config, capture=config.on_gpu)
    measured = speed.samples_per_second()
    if measured:
        rates.write_text(json.dumps(measured))


def run(num_processes: int) -> list[float]:
    """Windows a second of so many processes together.

    Raises:
        SfvgenError: they failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        rates = Path(folder) / "rates.json"
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
        command = [sys.executable, "-m", *launch, *sys.argv]
        ended = subprocess.run(command, env=os.environ | {RATES: str(rates)}, check=False)
        require(
            ended.returncode == 0 and rates.is_file(),
            f"training in {num_processes} processes failed, for the reason above; with fewer GPUs "
            "than --num-gpus, give fewer",
        )
        values: list[float] = json.loads(rates.read_text())
        return values


def measure(config: SpeedConfig, numbers: list[int]) -> Iterator[Figure]:
    """Time each number of processes, one of them first."""
    fields = {"model": config.model, "batch_size": config.training_batch_size}
    alone = float("nan")
    for number in sorted({1, *numbers}):
        values = np.array(run(number))
        alone = alone if number > 1 else values.mean()
        told = {**fields, "num_gpus": number, "precision": "bf16" if config.on_gpu else "fp32"}
        yield timing_figure("training_windows_per_second", values, "1/s", config, **told)
        if number > 1:
            yield timing_figure(f"scaling_{number}_gpus", values / alone, "1", config, **told)


def main() -> None:
    """Parse the command line, measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-gpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch-size", type=int, default=256, help="of each GPU")
    parser.add_argument("--num-runs", type=int, default=5, help="of as many steps as are logged")
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    arguments = parser.parse_args()
    config = replace(
        SpeedConfig.of(arguments.model, arguments.device),
        num_timed_runs=arguments.num_runs,
        training_batch_size=arguments.batch_size,
    )
    if RATES in os.environ:
        train(config, Path(os.environ[RATES]))
        return
    try:
        for figure in measure(config, arguments.num_gpus):
            merge_figures(arguments.out, [figure])
            print(f"{figure.name} ({figure.fields['num_gpus']}): {figure.value:.2f} {figure.ci95}")
    except SfvgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
