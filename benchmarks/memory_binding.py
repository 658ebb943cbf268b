"""Whether a memory binds what it saw to where and when: a world small enough for a CPU.

Three coloured cells stand on a grid of 4 x 4 latent cells, and in each chunk one of them moves to a
cell where none has stood. Then one that has moved is asked back, to its first place or, where it
moved twice, to the place before its last move. A small denoiser is trained by the slow-fast loop
from the start, once for each design of the memory; what differs is said by `--designs`, all else is
the same, the episodes and their order too. A hit is a return after which the asked colour is
brightest in the right cell; guessing among the 16 cells hits 0.06 of them.

    python benchmarks/memory_binding.py --out results/memory_binding.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from sfvgen_planner.evaluation.results import Figure, merge_figures
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.loop_recipe import LoopRecipe
from sfvgen_planner.memory.rewritten_batches import RewrittenBatches
from sfvgen_planner.memory.slow_fast import LoopBatches, SlowFastObjective
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.autoencoder import build_autoencoder
from sfvgen_planner.world_model.denoiser import build_denoiser
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.recipe import AutoencoderRecipe, TransformerRecipe
from sfvgen_planner.world_model.slow_learning import build_scheduler
from sfvgen_planner.world_model.text import build_text_encoder, build_tokenizer
from sfvgen_planner.world_model.trainer import train

SIDE = 4
COLOURS = ("red", "green", "blue")
NUM_PAST, NUM_FUTURE = 1, 2
MOST_MOVES = 5
NUM_EPISODES, NUM_HELD_OUT = 3000, 240
HELD_OUT_SEED = 100_000
BRIGHTNESS = 2.5
DESIGNS: dict[str, dict[str, Any]] = {
    "adapters": {"memory": {"rank": 48}},
    "large adapters": {"memory": {"rank": 144}},
    "large adapters, change_weight 1": {"memory": {"rank": 144}, "change_weight": 1.0},
    "table": {"memory": {"rank": 16, "num_time_slots": 8}},
    "table, change_weight 1": {
        "memory": {"rank": 16, "num_time_slots": 8},
        "change_weight": 1.0,
    },
}
"""What of a loop's recipe differs. A table of 8 slots for 16 cells is as large as a rank of 128."""

Recall = Literal["first", "previous"]
RECALLS: tuple[Recall, ...] = ("first", "previous")
TEXTS = (
    "",
    *(f"put the {colour} cube away" for colour in COLOURS),
    *(f"return the {colour} cube to its first place" for colour in COLOURS),
    *(f"put the {colour} cube back where it was before" for colour in COLOURS),
)


@dataclass(frozen=True)
class Episode:
    """Moves and a return.

    Attributes:
        places: `(moves + 2, colours)`, cells at the start, after each move and after the return.
        told: `(moves + 1,)`, what is asked, as indices into `TEXTS`.
        recall: Kind of the return.
        asked: The colour that is asked back.
    """

    places: np.ndarray
    told: list[int]
    recall: Recall
    asked: int


def draw_episode(seed: int) -> Episode:
    """The first and the previous place are asked for in turn."""
    rng = np.random.default_rng(seed)
    recall = RECALLS[seed % 2]
    while True:
        movers = rng.integers(len(COLOURS), size=rng.integers(2, MOST_MOVES + 1))
        counts = np.bincount(movers, minlength=len(COLOURS))
        askable = np.flatnonzero(counts > 0 if recall == "first" else counts == 2)
        if len(askable):
            break
    cells = list(rng.permutation(SIDE * SIDE))
    places = [np.array([cells.pop() for _ in COLOURS])]
    for mover in movers:
        places.append(places[-1].copy())
        places[-1][mover] = cells.pop()
    asked = int(rng.choice(askable))
    stood = np.array(places)[:, asked]
    # The cells that it stood on, one after the other.
    stood = stood[np.append(True, np.diff(stood) != 0)]
    places.append(places[-1].copy())
    places[-1][asked] = stood[0] if recall == "first" else stood[-2]
    kind = 1 + len(COLOURS) * (1 + RECALLS.index(recall))
    return Episode(np.array(places), [*(1 + movers).tolist(), kind + asked], recall, asked)


def frame(places: np.ndarray, hidden: int | None = None) -> Tensor:
    """A picture of latents `(4, SIDE, SIDE)`: a channel for each colour, and one more."""
    latents = torch.zeros(len(COLOURS) + 1, SIDE, SIDE)
    for colour, cell in enumerate(places):
        if colour != hidden:
            latents[colour, cell // SIDE, cell % SIDE] = BRIGHTNESS
    return latents


def table(episodes: list[Episode]) -> FrameTable:
    """The episodes as the loop reads them; a cube on its way is hidden for a frame."""
    frames: list[Tensor] = []
    ids: list[int] = []
    remaining: list[int] = []
    elapsed: list[int] = []
    for episode in episodes:
        frames.append(frame(episode.places[0]))
        for before, after in zip(episode.places, episode.places[1:], strict=False):
            moving = int(np.flatnonzero(before != after)[0])
            frames += [frame(before, moving), *[frame(after)] * (NUM_FUTURE - 1)]
        num_steps = NUM_FUTURE * len(episode.told)
        ids += [number for number in episode.told for _ in range(NUM_FUTURE)] + [0]
        elapsed += [*range(NUM_FUTURE)] * len(episode.told) + [0]
        remaining += range(num_steps, -1, -1)
    return FrameTable(
        frames=torch.stack(frames),
        actions=torch.zeros(len(ids), 1),
        instruction_ids=torch.tensor(ids),
        remaining=torch.tensor(remaining),
        elapsed=torch.tensor(elapsed),
        rewards=torch.zeros(len(ids)),
        successes=torch.full((len(ids),), -1, dtype=torch.int8),
        instructions=list(TEXTS),
    )


def build_model(seed: int) -> VideoWorldModel:
    """A small untrained denoiser; the autoencoder only tells the size of the latents."""
    torch.manual_seed(seed)
    autoencoder = AutoencoderRecipe.model_validate(
        {
            "block_out_channels": (8, 8),
            "latent_channels": len(COLOURS) + 1,
            "norm_num_groups": 4,
            "optimisation": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3},
        }
    )
    tokenizer = build_tokenizer(list(TEXTS[1:]), 600, 16)
    return VideoWorldModel(
        vae=build_autoencoder(autoencoder, 2 * SIDE),
        text_encoder=build_text_encoder(tokenizer, hidden_size=32, num_layers=1, num_heads=2),
        tokenizer=tokenizer,
        unet=build_denoiser(
            TransformerRecipe(num_layers=3, num_attention_heads=4, attention_head_dim=16),
            latent_channels=len(COLOURS) + 1,
            latent_side=SIDE,
            action_size=1,
            text_size=32,
        ),
        scheduler=build_scheduler(),
        image_size=2 * SIDE,
        action_low=[-1.0],
        action_high=[1.0],
        env_id="",
        num_past_frames=NUM_PAST,
        num_future_frames=NUM_FUTURE,
    )


def loop_recipe(design: str, steps: int) -> LoopRecipe:
    """The loop, which differs in the design alone."""
    changes = dict(DESIGNS[design])
    memory = {
        "learning_rate": 0.005,
        "instruction_code": True,
        "num_time_codes": 8,
        "num_noise_draws": 1,
        **changes.pop("memory"),
    }
    stage = {
        "max_chunks": MOST_MOVES,
        "num_memories": 12,
        "second_order_writes": 2,
        "optimisation": {
            "steps": steps,
            "batch_size": 48,
            "learning_rate": 1.5e-3,
            "warmup_steps": 50,
            "checkpoint_every": 100,
            "ema_decay": 0.99,
        },
    }
    return LoopRecipe.model_validate(
        {
            "name": "memory_binding",
            "mixed_precision": "no",
            "data": {"sources": [{"env_id": "", "policy": "", "episodes": NUM_EPISODES}]},
            "memory": memory,
            "recalls": {"^return": 1.0, "before$": 1.0},
            "recall_share": 0.9,
            "max_elapsed": 0,
            "conditions": {
                "language": 0.9,
                "actions": 0.0,
                "language_and_actions": 0.0,
                "none": 0.0,
                "whole_sequence": 0.1,
                "single_past_frame": 0.0,
                "context_noise": 0.0,
            },
            "stages": [stage],
            **changes,
        }
    )


def trained(recipe: LoopRecipe, seed: int, run: Path) -> tuple[VideoWorldModel, SlowFastObjective]:
    """The model and its memory after the loop; a stopped one goes on."""
    (stage,) = recipe.stages
    config = recipe.training_config(stage)
    assert config is not None
    model = build_model(seed)
    objective = SlowFastObjective(
        model, Adapters(model, config, seed), config, change_weight=recipe.change_weight
    )
    objective.requires_grad_(True)
    episodes = [draw_episode(seed * NUM_EPISODES + index) for index in range(NUM_EPISODES)]
    batches = LoopBatches(table(episodes), model, recipe, stage)
    draw = RewrittenBatches(batches, objective, stage.second_order_writes, nullcontext)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    train(objective, draw, stage.optimisation, run, accelerator, seed, run.name)
    return model, objective.requires_grad_(False)


def hits(
    model: VideoWorldModel,
    objective: SlowFastObjective,
    recipe: LoopRecipe,
    episodes: list[Episode],
) -> np.ndarray:
    """Whether each asked colour is imagined in its place, `(episodes,)`; all of as many moves."""
    held_out = table(episodes)
    num_moves, count = len(episodes[0].told) - 1, len(episodes)
    writer = LoopBatches(held_out, model, recipe, recipe.stages[0])
    begins = torch.arange(count) * (NUM_FUTURE * (num_moves + 1) + 1)
    with torch.no_grad():
        writes = writer.writes(begins, num_moves, torch.Generator().manual_seed(0))
        fast = objective.write(writes)
        model.num_memories = count
        with objective.adapters.placed(fast, torch.full((count,), num_moves)):
            imagined = model(
                held_out.frames[begins + NUM_FUTURE * num_moves][:, :, None],
                instruction=[TEXTS[episode.told[-1]] for episode in episodes],
                num_frames=NUM_FUTURE,
                num_inference_steps=4,
                generator=[torch.Generator().manual_seed(index) for index in range(count)],
                output_type="latent",
            ).latents
        model.num_memories = 1
    found = []
    for episode, last in zip(episodes, imagined[:, :, -1], strict=True):
        found.append(int(last[episode.asked].argmax()) == episode.places[-1][episode.asked])
    return np.array(found, dtype=float)


def measure(designs: list[str], steps: int, seeds: list[int], runs: Path) -> Iterator[Figure]:
    """The share of hits of each design, recall and number of moves."""
    held_out = [draw_episode(HELD_OUT_SEED + index) for index in range(NUM_HELD_OUT)]
    for design in designs:
        recipe = loop_recipe(design, steps)
        for seed in seeds:
            model, objective = trained(recipe, seed, runs / f"{design}, seed {seed}")
            for recall in RECALLS:
                for num_moves in range(2, MOST_MOVES + 1):
                    chosen = [
                        index
                        for index, episode in enumerate(held_out)
                        if episode.recall == recall and len(episode.told) == num_moves + 1
                    ]
                    yield Figure.measured(
                        "binding_hit_rate",
                        hits(model, objective, recipe, [held_out[index] for index in chosen]),
                        "1",
                        [HELD_OUT_SEED + index for index in chosen],
                        design=design,
                        recall=recall,
                        num_moves=num_moves,
                        steps=steps,
                        training_seed=seed,
                    )


def main() -> None:
    """Measure, and print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS))
    parser.add_argument("--steps", type=int, default=600, help="of the loop")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the training")
    parser.add_argument("--runs", type=Path, default=Path("runs/memory_binding"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # The same sums in the same order, and quicker for layers as small as these.
    torch.set_num_threads(1)
    for figure in measure(args.designs, args.steps, args.seeds, args.runs):
        told = " ".join(f"{name}={value}" for name, value in figure.fields.items())
        print(f"{figure.name} {figure.value:.2f} {figure.ci95} {told}")
        if args.out is not None:
            merge_figures(args.out, [figure])


if __name__ == "__main__":
    main()
