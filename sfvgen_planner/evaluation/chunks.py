"""Windows of real episodes, what the model imagines in their place, and how far off it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sfvgen_policies import make_policy
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import Episode
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play
from sfvgen_planner.evaluation.tabletop import (
    CUBE_COLOURS,
    ENV_ID,
    locate_cube,
    locate_gripper,
)
from sfvgen_planner.world_model import VideoWorldModel

POLICIES = ("expert", "random")
"""Whose episodes action-conditioned video is judged on."""


@dataclass(frozen=True, eq=False)
class Chunks:
    """Windows cut from episodes.

    Attributes:
        past: ``(N, P, H, W, 3)`` uint8.
        future: the frames after it ``(N, F, H, W, 3)`` uint8.
        actions: ``(N, F, A)``; entry k leads to future frame k.
        episode: index ``(N,)`` of the episode each was cut from.
    """

    past: np.ndarray
    future: np.ndarray
    actions: np.ndarray
    episode: np.ndarray

    @classmethod
    def cut(cls, episodes: Sequence[Episode], num_past: int, num_future: int) -> Chunks:
        """All chunks with a full past, one after the other; futures do not overlap."""
        past, future, actions, owner = [], [], [], []
        for index, episode in enumerate(episodes):
            for now in range(num_past, len(episode) - num_future + 2, num_future):
                past.append(episode.frames[now - num_past : now])
                future.append(episode.frames[now : now + num_future])
                actions.append(episode.actions[now - 1 : now - 1 + num_future])
                owner.append(index)
        if not owner:
            raise SfvgenError(f"no episode is long enough for a chunk of {num_future} frames")
        return cls(np.stack(past), np.stack(future), np.stack(actions), np.array(owner))

    def shuffled(self) -> np.ndarray:
        """For each chunk the index of another, of another episode if none has half of them."""
        longest = int(np.bincount(self.episode).max())
        return np.roll(np.arange(len(self.episode)), longest)

    def episode_means(self, values: np.ndarray) -> np.ndarray:
        """Mean of ``values`` ``(N,)`` over each episode's chunks; NaN where it has none.

        A value that is NaN does not count.
        """
        return episode_means(values, self.episode)


def episode_means(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Mean of ``values`` ``(N,)`` over those of each episode; NaN where it has none.

    Args:
        values: NaN does not count.
        owner: index ``(N,)`` of the episode of each value.
    """
    known = np.isfinite(values)
    count, owner = int(owner.max()) + 1, owner[known]
    with np.errstate(invalid="ignore"):
        return np.bincount(owner, values[known], count) / np.bincount(owner, minlength=count)


def imagine_frames(
    model: VideoWorldModel,
    past: np.ndarray,
    *,
    actions: np.ndarray | None = None,
    instructions: Sequence[str | None] | None = None,
    num_frames: int | None = None,
    num_inference_steps: int,
    guidance_scale: float = 1.0,
    batch_size: int,
    description: str,
    output_type: Literal["np", "latent"] = "np",
) -> np.ndarray:
    """What the model imagines after each past ``(N, P, H, W, 3)``.

    The noise is the same in every run; the other arguments are those of ``VideoWorldModel``.

    Returns:
        Frames ``(N, F, H, W, 3)``, or latents ``(N, channels, F, h, w)``.
    """
    generator = torch.Generator().manual_seed(0)
    starts = range(0, len(past), batch_size)
    imagined: list[np.ndarray] = []
    for start in tqdm(starts, desc=description, unit="batch", dynamic_ncols=True):
        rows = slice(start, start + batch_size)
        output = model(
            past[rows],
            instruction=None if instructions is None else list(instructions[rows]),
            actions=None if actions is None else actions[rows],
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            output_type=output_type,
        )
        latents = output.latents.float().cpu().numpy()
        imagined.append(latents if output.frames is None else output.frames)
    return np.concatenate(imagined)


def place_error_px(imagined: np.ndarray, real: np.ndarray, width: int) -> np.ndarray:
    """Distance [px] of places ``(N, 2)`` found in imagined frames from the real ones.

    What is not in the imagined picture at all (NaN) counts as off by the picture's ``width``; what
    is not in the real one has no error (NaN).
    """
    distance = np.linalg.norm(imagined - real, axis=-1)
    lost = np.isnan(imagined).any(axis=-1) & np.isfinite(real).all(axis=-1)
    return np.where(lost, float(width), distance)


def gripper_error_px(imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Pixels ``(N,)`` between the grippers of frames ``(N, H, W, 3)``."""
    return place_error_px(locate_gripper(imagined), locate_gripper(real), real.shape[-2])


def cube_errors_px(imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Pixels ``(colours, N)`` between cubes in frames ``(N, H, W, 3)``; NaN for no such cube."""
    errors = [
        place_error_px(locate_cube(imagined, colour), locate_cube(real, colour), real.shape[-2])
        for colour in CUBE_COLOURS
    ]
    return np.stack(errors)


def policy_episodes(env_kwargs: dict[str, Any], seeds: range) -> tuple[list[Episode], list[str]]:
    """Episodes of every policy, and whose each one is."""
    episodes, policies = [], []
    env = make_env(ENV_ID, env_kwargs)
    for policy in POLICIES:
        episodes += list(play(env, make_policy(policy, env), seeds, f"{policy} episodes"))
        policies += [policy] * len(seeds)
    env.close()
    return episodes, policies


def figures_by_policy(
    name: str,
    per_episode: np.ndarray,
    unit: str,
    episodes: Sequence[Episode],
    policies: Sequence[str],
    config: EvaluationConfig,
    **settings: Any,
) -> Iterator[Figure]:
    """One figure over all episodes, and one for each policy."""
    for group in ("+".join(POLICIES), *POLICIES):
        chosen = np.isfinite(per_episode) & np.array([policy in group for policy in policies])
        if not chosen.any():
            continue
        seeds = [episode.seed for episode, used in zip(episodes, chosen, strict=True) if used]
        yield Figure.measured(
            name,
            per_episode[chosen],
            unit,
            seeds,
            config.device,
            policy=group,
            model=config.model,
            **settings,
        )
