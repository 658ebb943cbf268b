"""Imagined frames a second beside DIAMOND's world model, in one run on one machine.

DIAMOND (Alonso et al., 2024, https://github.com/eloialonso/diamond) denoises one 64x64 frame at a
time, in 3 calls of a network of 4.4 million parameters; ours denoises 8 frames at a time in the
latents of an autoencoder, which are then decoded. Both go from past frames on the device to new
frames on the host. DIAMOND is timed as published (float32) and, on a GPU, also compiled under
bfloat16 autocast, as ours is there. Neither's quality is measured: DIAMOND's weights are random,
which makes no difference to its speed.

    git clone https://github.com/eloialonso/diamond
    python benchmarks/diamond_speed.py --diamond diamond --device cuda --batch-size 256
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from tqdm import tqdm

from sfvgen_planner.errors import SfvgenError, require
from sfvgen_planner.evaluation.provenance import checked_out_commit
from sfvgen_planner.evaluation.results import Figure, merge_figures
from sfvgen_planner.evaluation.speed import imagining
from sfvgen_planner.evaluation.timing import SpeedConfig, load_fast, seconds_of, timing_figure

NUM_CALLS = 3
"""DIAMOND's denoising steps of a frame, in its `config/trainer.yaml`."""
NUM_PAST = 4
SIDE = 64
# Its `config/agent/default.yaml`.
DENOISER = {"sigma_data": 0.5, "sigma_offset_noise": 0.3}
NETWORK = {
    "img_channels": 3,
    "num_steps_conditioning": NUM_PAST,
    "cond_channels": 256,
    "depths": [2, 2, 2, 2],
    "channels": [64, 64, 64, 64],
    "attn_depths": [0, 0, 0, 0],
    "num_actions": 18,
}

Work = Callable[[], object]


def load_diamond(folder: Path, device: str) -> Any:
    """The sampler of its denoiser, which has random weights.

    Raises:
        SfvgenError: the folder does not hold DIAMOND.
    """
    source = folder / "src"
    require(
        (source / "models/diffusion").is_dir(),
        f"{folder} does not hold DIAMOND; clone https://github.com/eloialonso/diamond and give its "
        "folder with --diamond",
    )
    sys.path.insert(0, str(source))
    # It logs and configures with these, which has nothing to do with its speed.
    for name in ("omegaconf", "wandb"):
        sys.modules.setdefault(name, MagicMock())
    from models import diffusion  # type: ignore[import-not-found]

    network = diffusion.InnerModelConfig(**NETWORK)
    config = diffusion.DenoiserConfig(inner_model=network, **DENOISER)
    denoiser = diffusion.Denoiser(config).to(device).eval()
    return diffusion.DiffusionSampler(denoiser, diffusion.DiffusionSamplerConfig(NUM_CALLS))


@torch.no_grad()
def roll_out(sampler: Any, batch_size: int, num_frames: int, device: str) -> torch.Tensor:
    """Frames ``(batch, num_frames, 3, 64, 64)`` uint8 on the host, each after the last."""
    frames = torch.zeros(batch_size, NUM_PAST, 3, SIDE, SIDE, device=device)
    actions = torch.zeros(batch_size, NUM_PAST, dtype=torch.long, device=device)
    imagined = []
    for _ in range(num_frames):
        frame, _ = sampler.sample(frames, actions)
        frames = torch.cat([frames[:, 1:], frame[:, None]], dim=1)
        imagined.append(frame)
    return torch.stack(imagined, dim=1).add(1).mul(127.5).byte().cpu()


def compiled_roll_out(sampler: Any, batch_size: int, num_frames: int, device: str) -> Work:
    """The same, by compiled code and CUDA graphs, under bfloat16 autocast."""
    sampler.denoiser.inner_model.compile(mode="reduce-overhead")

    def roll() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            roll_out(sampler, batch_size, num_frames, device)

    return roll


def measure(config: SpeedConfig, diamond: Path, batch_size: int) -> Iterator[Figure]:
    """Time both libraries in turn, round after round; a ratio is that of one round."""
    model, settings = load_fast(config)
    num_frames = model.config.num_future_frames
    sizes = (batch_size, num_frames, config.device)
    works: dict[str, Work] = {
        "ours": imagining(model, batch_size, config.num_inference_steps),
        "published": partial(roll_out, load_diamond(diamond, config.device), *sizes),
    }
    if config.on_gpu:
        works["compiled"] = compiled_roll_out(load_diamond(diamond, config.device), *sizes)
    rounds = tqdm(range(config.num_timed_runs + 1), desc="rounds", unit="round", dynamic_ncols=True)
    times = [[seconds_of(work, config) for work in works.values()] for _ in rounds]
    # The first round warms up.
    seconds = dict(zip(works, np.array(times[1:]).T, strict=True))
    settings |= {
        "batch_size": batch_size,
        "num_inference_steps": config.num_inference_steps,
        "diamond_commit": checked_out_commit(diamond),
    }
    for how in list(works)[1:]:
        fields = {**settings, "diamond": how}
        rates = batch_size * num_frames / seconds[how]
        yield timing_figure("diamond_frames_per_second", rates, "1/s", config, **fields)
        yield timing_figure("diamond_ratio", seconds[how] / seconds["ours"], "1", config, **fields)


def main() -> None:
    """Parse the command line, measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--diamond", type=Path, required=True, help="folder of its clone")
    parser.add_argument("--model", default="tabletop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    arguments = parser.parse_args()
    config = replace(
        SpeedConfig.of(arguments.model, arguments.device), num_timed_runs=arguments.num_runs
    )
    try:
        for figure in measure(config, arguments.diamond, arguments.batch_size):
            merge_figures(arguments.out, [figure])
            print(f"{figure.name} ({figure.fields['diamond']}): {figure.value:.2f} {figure.ci95}")
    except SfvgenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
