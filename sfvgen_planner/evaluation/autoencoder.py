"""How much of a frame the autoencoder keeps: what bounds every imagined one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from sfvgen_planner.evaluation.chunks import cube_errors_px, figures_by_policy, policy_episodes
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.metrics import psnr_db
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.world_model import load_world_model

HALF_PIXEL = 0.5


def measure_autoencoder(
    config: EvaluationConfig, num_episodes: int, env_kwargs: dict[str, Any]
) -> Iterator[Figure]:
    """Encoded and decoded frames of whole episodes against the frames themselves.

    Args:
        config: model and device.
        num_episodes: of each policy.
        env_kwargs: of the environment that they are played in.
    """
    model = load_world_model(config.model).to(config.device)
    episodes, policies = policy_episodes(env_kwargs, config.seeds(num_episodes))
    measured = []
    for episode in tqdm(episodes, desc="autoencoder", unit="episode", dynamic_ncols=True):
        frames = episode.frames
        decoded = model.decode(model.encode(frames[None]))[0]
        errors = cube_errors_px(decoded, frames)
        known = errors[np.isfinite(errors)]
        measured.append(
            (
                psnr_db(decoded[:, None], frames[:, None]).mean(),
                known.mean(),
                (known <= HALF_PIXEL).mean(),
            )
        )
    names = {
        "autoencoder_psnr_db": "dB",
        "autoencoder_cube_error_px": "px of 64",
        "autoencoder_cube_within_half_px": "1",
    }
    for (name, unit), values in zip(names.items(), np.array(measured).T, strict=True):
        yield from figures_by_policy(name, values, unit, episodes, policies, config, **env_kwargs)
