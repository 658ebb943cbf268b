"""A training run that is killed at random moments, and whether it resumes each time.

`sfvgen train` runs a recipe of tiny networks through all its stages, with a checkpoint after every
step. Again and again it gets SIGKILL at a random moment after it has made some progress, in the
middle of a checkpoint too. A kill is survived where the next run goes on from a checkpoint that was
written before it, and counts for nothing unless the last run ends in the weights, bit for bit, of a
run that was left alone.

    python benchmarks/resume_kills.py --out results/speed.json
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sfvgen_planner.evaluation.results import Figure, merge_figures

LONGEST_WAIT_S = 0.5
"""Between the first checkpoint that a run adds and its end, at most."""
STEPS = 80
"""Of each stage."""
RECIPE = f"""
name: tiny
mixed_precision: "no"
data:
  sources:
    - env_id: sfvgen/TabletopReturn-v0
      env_kwargs: {{level: 1, recall: none}}
      policy: expert
      episodes: 3
autoencoder:
  block_out_channels: [8, 8, 8, 8, 8]
  latent_channels: 4
  norm_num_groups: 4
  optimisation: &often {{steps: {STEPS}, batch_size: 2, learning_rate: 1.0e-3, checkpoint_every: 1}}
world_model:
  unet: {{block_out_channels: [32, 32], attention_head_dim: 8}}
  text: {{hidden_size: 16, num_layers: 1, num_heads: 2}}
  optimisation: *often
inverse_dynamics:
  block_out_channels: [8, 8, 8, 8]
  hidden_size: 16
  optimisation: *often
outcome_head:
  hidden_size: 16
  num_blocks: 1
  optimisation: *often
"""


class Run:
    """One run of training, in a process of its own each time it is started.

    Args:
        folder: holds the recipe and the data.
        name: of the run's own folder in it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.out = folder / name
        files = ["--recipe", folder / "recipe.yaml", "--data", folder / "data", "--out", self.out]
        self._command = [sys.executable, "-m", "sfvgen_planner", "train", *map(str, files)]

    def start(self) -> subprocess.Popen[bytes]:
        """Begin, or go on."""
        # The same sums in the same order: one thread.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (self.out.parent / f"{self.out.name}.log").open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    def finish(self) -> None:
        """Go on to the end."""
        process = self.start()
        if process.wait() != 0:
            raise RuntimeError(f"{shlex.join(self._command)} failed with {process.returncode}")

    def progress(self) -> set[Path]:
        """The whole checkpoints of all stages that are there now."""
        return set(self.out.glob("*/checkpoint-*"))

    def weights(self) -> dict[Path, bytes]:
        """All weights of the finished model."""
        model = self.out / "model"
        return {path.relative_to(model): path.read_bytes() for path in model.rglob("*.safetensors")}


def kill(run: Run, wait_s: float) -> tuple[bool, bool]:
    """Start the run, kill it after it has made progress, and tell how it went.

    Returns:
        Whether it made progress, and whether it was killed within a checkpoint.
    """
    before, process = run.progress(), run.start()
    while process.poll() is None and run.progress() <= before:
        time.sleep(0.001)
    time.sleep(wait_s)
    process.kill()
    process.wait()
    went_on = bool(run.progress() - before)
    return went_on, any(run.out.glob("*/checkpoint.tmp"))


def measure(num_kills: int, seed: int) -> Figure:
    """Kill, resume, and compare with a run that was left alone."""
    moments = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE)
        collect = ["collect", "--recipe", str(recipe), "--out", str(folder / "data")]
        subprocess.run([sys.executable, "-m", "sfvgen_planner", *collect], check=True)
        killed, whole = Run(folder, "killed"), Run(folder, "whole")
        outcomes = [
            kill(killed, moments.uniform(0, LONGEST_WAIT_S))
            for _ in tqdm(range(num_kills), desc="kills", unit="kill", dynamic_ncols=True)
        ]
        was_finished = (killed.out / "model").exists()
        killed.finish()
        whole.finish()
        weights = whole.weights()
        is_equal = bool(weights) and killed.weights() == weights
        if was_finished:
            raise RuntimeError(f"{num_kills} kills outlast the run; give it more steps")
    # Each kill is judged by the run after it; the last one's went to the end.
    survived = [went_on and is_equal for went_on, _ in outcomes[1:]] + [is_equal]
    return Figure.measured(
        "resume_kills",
        survived,
        "1",
        [seed] * num_kills,
        num_kills=num_kills,
        num_in_a_checkpoint=sum(in_checkpoint for _, in_checkpoint in outcomes),
        same_weights=is_equal,
    )


def main() -> None:
    """Parse the command line, measure and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    parser.add_argument("--num-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figure = measure(arguments.num_kills, arguments.seed)
    merge_figures(arguments.out, [figure])
    fields = figure.fields
    print(
        f"{figure.value * fields['num_kills']:.0f} of {fields['num_kills']} kills survived, "
        f"{fields['num_in_a_checkpoint']} of them within a checkpoint; the weights are "
        f"{'' if fields['same_weights'] else 'not '}those of a run that was left alone"
    )


if __name__ == "__main__":
    main()
