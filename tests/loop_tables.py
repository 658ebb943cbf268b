"""Episodes and a recipe for tests of the slow-fast loop."""

import numpy as np
import torch

from sfvgen_planner.memory.loop_recipe import LoopRecipe
from sfvgen_planner.world_model.frame_table import FrameTable

INSTRUCTIONS = ["", "put it away", "return the cube", "put it back"]


def recipe(**changes):
    stage = {
        "max_chunks": 4,
        "num_memories": 6,
        "optimisation": {"steps": 3, "batch_size": 24, "learning_rate": 1e-3, "warmup_steps": 0},
    }
    values = {
        "name": "test",
        "mixed_precision": "no",
        "data": {"sources": [{"env_id": "x", "policy": "expert", "episodes": 1}]},
        "memory": {"rank": 4, "num_time_codes": 3, "num_noise_draws": 2},
        "recalls": {"^return": 1.0, "back$": 3.0},
        "recall_share": 1.0,
        "stages": [{**stage, **changes.pop("stage", {})}],
    }
    return LoopRecipe.model_validate({**values, **changes})


def told_table(segments, seed=0):
    """Episodes of random latents; each is a list of (instruction, steps)."""
    frames, ids, remaining, elapsed = [], [], [], []
    generator = torch.Generator().manual_seed(seed)
    for episode in segments:
        steps = sum(count for _, count in episode)
        frames.append(torch.randn(steps + 1, 4, 4, 4, generator=generator))
        ids += [number for number, count in episode for _ in range(count)] + [0]
        elapsed += [step for _, count in episode for step in range(count)] + [0]
        remaining += range(steps, -1, -1)
    return FrameTable(
        frames=torch.cat(frames),
        actions=torch.zeros(len(ids), 4),
        instruction_ids=torch.tensor(ids),
        remaining=torch.tensor(remaining),
        elapsed=torch.tensor(elapsed),
        rewards=torch.zeros(len(ids)),
        successes=torch.full((len(ids),), -1, dtype=torch.int8),
        instructions=INSTRUCTIONS,
    )


# Recalls from steps 10, 18 and 26 on, and at most 8 later: after 1 to 4 whole chunks of 8.
TABLE = told_table(
    [
        [(1, 10), (2, 13)],
        [(1, 9), (1, 9), (3, 13)],
        [(1, 13), (1, 13), (2, 13)],
        [(1, 12)],
    ]
)


def rows_of(latents, table):
    """The row of each frame, `(..., frames)`, for latents `(..., channels, frames, h, w)`."""
    known = {frame.numpy().tobytes(): row for row, frame in enumerate(table.frames)}
    flat = latents.movedim(-4, -3).flatten(0, -4)
    rows = [known[frame.contiguous().numpy().tobytes()] for frame in flat]
    return np.array(rows).reshape(*latents.shape[:-4], latents.shape[-3])
