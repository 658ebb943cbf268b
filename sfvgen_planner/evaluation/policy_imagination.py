"""What becomes of policies in imagined worlds, as the outcome head judges it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from sfvgen_planner.data.camera import camera_frame
from sfvgen_planner.data.environment import Environment
from sfvgen_planner.data.rollout import told_instruction
from sfvgen_planner.evaluation.chunks import imagine_frames
from sfvgen_planner.evaluation.policy_ladder import Rung
from sfvgen_planner.imagination import ImaginationWrapper, Start, WorldModelEnv
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.outcome_head import OutcomeHead


def real_starts(env: Environment, seeds: Sequence[int], image_size: int) -> list[Start]:
    """The first frame and instruction of the episode of each seed."""
    starts = []
    for seed in seeds:
        observation, info = env.reset(seed=seed)
        frame = camera_frame(env, observation, image_size).copy()
        starts.append(Start(frame[None], told_instruction(info)))
    return starts


def replay(
    model: VideoWorldModel,
    head: OutcomeHead,
    starts: Sequence[Start],
    actions: Sequence[np.ndarray],
    *,
    num_inference_steps: int,
    batch_size: int,
    description: str,
) -> list[np.ndarray]:
    """Imagine recorded actions from real first frames, chunk by chunk.

    Args:
        model: it goes on from its own frames.
        head: judges every imagined frame.
        starts: N of them.
        actions: of each start ``(T, A)`` in the environment's units; T may differ.
        num_inference_steps: denoiser calls per chunk.
        batch_size: starts imagined at once.
        description: of the progress bar.

    Returns:
        N arrays ``(T,)``: the probability of success on each imagined frame.
    """
    lengths = [len(one) for one in actions]
    longest = max(lengths)
    # What follows the last action is not looked at.
    padded = [np.pad(one, ((0, longest - len(one)), (0, 0)), mode="edge") for one in actions]
    latents = imagine_frames(
        model,
        np.stack([start.frames for start in starts]),
        actions=np.stack(padded),
        num_inference_steps=num_inference_steps,
        batch_size=batch_size,
        description=description,
        output_type="latent",
    )
    probabilities = success_probabilities(
        model, head, torch.from_numpy(latents), [start.instruction for start in starts]
    )
    return [one[:length] for one, length in zip(probabilities, lengths, strict=True)]


def act_in_imagination(
    model: VideoWorldModel,
    head: OutcomeHead,
    rung: Rung,
    starts: Sequence[Start],
    seeds: Sequence[int],
    *,
    horizon: int,
    success_threshold: float,
    num_inference_steps: int,
) -> list[np.ndarray]:
    """Let a policy act on the imagined frames, which it and the model make in turn.

    Args:
        model: imagines one frame per action.
        head: judges every imagined frame, and so ends episodes, see ``WorldModelVectorEnv``.
        rung: the policy; it must act on images.
        starts: N of them.
        seeds: of the policy and of the noise, one per start.
        horizon: steps of an episode at most.
        success_threshold: probability on two frames in a row that ends an episode.
        num_inference_steps: denoiser calls per frame.

    Returns:
        N arrays ``(T,)``: the probability of success on each imagined frame.
    """
    waiting = iter(starts)
    world = WorldModelEnv(
        model,
        lambda _: next(waiting),
        horizon=horizon,
        outcome_head=head,
        success_threshold=success_threshold,
        num_inference_steps=num_inference_steps,
    )
    env = ImaginationWrapper(world, model)
    policy = rung.make(env)
    episodes = []
    description = f"{rung.name}, imagined closed loop"
    for seed in tqdm(seeds, desc=description, unit="episode", dynamic_ncols=True):
        observation, info = env.reset(seed=seed)
        policy.reset(seed)
        probabilities: list[float] = []
        terminated = truncated = False
        while not (terminated or truncated):
            action = policy.act(observation, info["instruction"])
            observation, _, terminated, truncated, info = env.step(action)
            probabilities.append(info["success_probability"])
        episodes.append(np.array(probabilities))
    env.close()
    return episodes


@torch.no_grad()
def success_probabilities(
    model: VideoWorldModel, head: OutcomeHead, latents: torch.Tensor, instructions: Sequence[str]
) -> np.ndarray:
    """Calibrated probabilities ``(N, F)`` that frames show their instruction achieved.

    Args:
        model: whose latents these are.
        head: its outcome head, on the model's device.
        latents: ``(N, C, F, h, w)``.
        instructions: N of them.
    """
    token_ids = head.tokenize(model, list(instructions)).to(model.device)
    judged = [
        head.success_logits(video.transpose(0, 1).float(), one.expand(video.shape[1], -1))
        for video, one in zip(latents.to(model.device), token_ids, strict=True)
    ]
    return torch.stack(judged).float().sigmoid().cpu().numpy()
