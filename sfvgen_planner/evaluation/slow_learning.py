"""How true the world model is: to actions, to what might have been, to words, to success."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sfvgen_policies import make_policy
from tqdm import tqdm

from sfvgen_planner.data.environment import make_env
from sfvgen_planner.data.episode import Episode
from sfvgen_planner.evaluation.autoencoder import measure_autoencoder
from sfvgen_planner.evaluation.chunks import (
    Chunks,
    cube_errors_px,
    episode_means,
    figures_by_policy,
    gripper_error_px,
    imagine_frames,
    policy_episodes,
)
from sfvgen_planner.evaluation.measure import EvaluationConfig
from sfvgen_planner.evaluation.metrics import psnr_db
from sfvgen_planner.evaluation.outcome_head import measure_outcome_head
from sfvgen_planner.evaluation.results import Figure
from sfvgen_planner.evaluation.rollout import play
from sfvgen_planner.evaluation.tabletop import CUBE_COLOURS, ENV_ID, locate_cube
from sfvgen_planner.world_model import VideoWorldModel, load_world_model

CHUNK_EPISODES: dict[str, Any] = {"level": 2, "recall": "first"}
LONG_EPISODES: dict[str, Any] = {"level": 4, "recall": "none", "num_moves": 6}
SKILL_EPISODES: dict[str, Any] = {"level": 3, "recall": "none"}
COUNTERFACTUALS = ("expert", "random", "adversarial")
NUM_ROLLOUT_CHUNKS = 8
MANY_STEPS = 25
SAMPLER_STEPS = (1, 2, 4, 8, MANY_STEPS)


@dataclass(frozen=True)
class SlowLearningConfig(EvaluationConfig):
    """Size of the evaluation.

    Attributes:
        num_chunk_episodes: episodes of each policy that chunks come from.
        num_few_step_episodes: of these, those that are imagined with many steps too.
        num_rollout_episodes: episodes of each policy that the model imagines on its own.
        num_counterfactual_episodes: episodes from whose states other actions are taken.
        num_skill_episodes: episodes whose instructions are imagined.
        num_outcome_episodes: episodes of each kind whose success and reward are judged.
        num_inference_steps: denoiser calls per chunk, for actions.
        num_language_steps: denoiser calls per chunk, for instructions.
        guidance_scale: for instructions.
    """

    env_id = ENV_ID
    num_chunk_episodes: int = 32
    num_few_step_episodes: int = 8
    num_rollout_episodes: int = 16
    num_counterfactual_episodes: int = 24
    num_skill_episodes: int = 48
    num_outcome_episodes: int = 48
    num_inference_steps: int = 2
    num_language_steps: int = 4
    guidance_scale: float = 2.0


def measure_chunks(config: SlowLearningConfig) -> Iterator[Figure]:
    """Quality of action-conditioned chunks, and how far the gripper and the cubes end off."""
    model = load_world_model(config.model).to(config.device)
    episodes, policies = policy_episodes(CHUNK_EPISODES, config.seeds(config.num_chunk_episodes))
    chunks = _cut(episodes, model)
    imagined = _imagine(model, chunks.past, chunks.actions, config, "chunks")
    real_end, end = chunks.future[:, -1], imagined[:, -1]
    values = {
        "action_chunk_psnr_db": (psnr_db(imagined, chunks.future), "dB"),
        "gripper_error_px": (gripper_error_px(end, real_end), "px of 64"),
        "cube_error_px": (np.nanmean(cube_errors_px(end, real_end), axis=0), "px of 64"),
        "cube_lost_share": (_cubes_lost(end, real_end), "1"),
    }
    for name, (per_chunk, unit) in values.items():
        per_episode = chunks.episode_means(per_chunk)
        settings = {"num_inference_steps": config.num_inference_steps, **CHUNK_EPISODES}
        yield from figures_by_policy(
            name, per_episode, unit, episodes, policies, config, **settings
        )


def measure_few_steps(config: SlowLearningConfig) -> Iterator[Figure]:
    """PSNR with few sampler steps as a share of that with many; 1 or more is no loss."""
    model = load_world_model(config.model).to(config.device)
    episodes, policies = policy_episodes(CHUNK_EPISODES, config.seeds(config.num_few_step_episodes))
    chunks = _cut(episodes, model)
    few = _imagine(model, chunks.past, chunks.actions, config, "few steps")
    many = _imagine(model, chunks.past, chunks.actions, config, "many steps", MANY_STEPS)
    ratio = psnr_db(few, chunks.future) / psnr_db(many, chunks.future)
    settings = {"num_inference_steps": config.num_inference_steps, "many_steps": MANY_STEPS}
    yield from figures_by_policy(
        "few_step_quality_ratio",
        chunks.episode_means(ratio),
        "1",
        episodes,
        policies,
        config,
        measure="psnr_db",
        **settings,
        **CHUNK_EPISODES,
    )


def measure_sampler_steps(config: SlowLearningConfig) -> Iterator[Figure]:
    """PSNR of the same chunks at few and many sampler steps: what to predict, and how to sample."""
    model = load_world_model(config.model).to(config.device)
    episodes, policies = policy_episodes(CHUNK_EPISODES, config.seeds(config.num_few_step_episodes))
    chunks = _cut(episodes, model)
    for steps in SAMPLER_STEPS:
        imagined = _imagine(model, chunks.past, chunks.actions, config, f"{steps} steps", steps)
        yield from figures_by_policy(
            "sampler_steps_psnr_db",
            chunks.episode_means(psnr_db(imagined, chunks.future)),
            "dB",
            episodes,
            policies,
            config,
            denoiser=type(model.unet).__name__,
            scheduler=type(model.scheduler).__name__,
            prediction=model.scheduler.config.get("prediction_type", "flow"),
            num_inference_steps=steps,
            **CHUNK_EPISODES,
        )


def measure_rollout(config: SlowLearningConfig) -> Iterator[Figure]:
    """Where the gripper is after 8 chunks that the model rolled out on its own frames."""
    model = load_world_model(config.model).to(config.device)
    episodes, policies = policy_episodes(LONG_EPISODES, config.seeds(config.num_rollout_episodes))
    num_past = model.config.num_past_frames
    horizon = NUM_ROLLOUT_CHUNKS * model.config.num_future_frames
    long = [len(episode) >= num_past - 1 + horizon for episode in episodes]
    episodes = [one for one, enough in zip(episodes, long, strict=True) if enough]
    policies = [one for one, enough in zip(policies, long, strict=True) if enough]
    past = np.stack([episode.frames[:num_past] for episode in episodes])
    actions = np.stack(
        [episode.actions[num_past - 1 : num_past - 1 + horizon] for episode in episodes]
    )
    imagined = _imagine(model, past, actions, config, "rollouts")
    real = np.stack([episode.frames[num_past - 1 + horizon] for episode in episodes])
    yield from figures_by_policy(
        "gripper_error_px_8_chunks",
        gripper_error_px(imagined[:, -1], real),
        "px of 64",
        episodes,
        policies,
        config,
        num_inference_steps=config.num_inference_steps,
        **LONG_EPISODES,
    )


def measure_counterfactuals(config: SlowLearningConfig) -> Iterator[Figure]:
    """Where the gripper ends under other actions than those taken, against the simulator.

    The simulator is set back to a moment of an expert's episode and given the actions of another
    episode's expert, of the random policy, or adversarial ones: full speed in a random direction
    that turns at a random moment.
    """
    model = load_world_model(config.model).to(config.device)
    seeds = config.seeds(config.num_counterfactual_episodes)
    past, actions, real, owner = _branch(model, seeds)
    for kind in COUNTERFACTUALS:
        imagined = _imagine(model, past, actions[kind], config, f"{kind} counterfactuals")
        error = episode_means(gripper_error_px(imagined[:, -1], real[kind]), owner)
        known = np.isfinite(error)
        yield Figure.measured(
            "counterfactual_error_px",
            error[known],
            "px of 64",
            [seed for seed, used in zip(seeds, known, strict=True) if used],
            config.device,
            actions=kind,
            model=config.model,
            num_inference_steps=config.num_inference_steps,
            **CHUNK_EPISODES,
        )


def measure_language(config: SlowLearningConfig) -> Iterator[Figure]:
    """Share of instructions in whose imagined video the asked cube moves, and more than others."""
    model = load_world_model(config.model).to(config.device)
    seeds = config.seeds(config.num_skill_episodes)
    env = make_env(ENV_ID, SKILL_EPISODES)
    past, texts, owner = [], [], []
    for index, episode in enumerate(play(env, make_policy("expert", env), seeds, "skills")):
        starts = [0, *(np.flatnonzero(_changes(episode.instructions)) + 1)]
        for start in starts:
            # A context of the usual length, or the first frame alone.
            begin = start + 1 - model.config.num_past_frames
            past.append(episode.frames[begin if begin >= 0 else start : start + 1])
            texts.append(episode.instructions[start])
            owner.append(index)
    env.close()
    moved = np.zeros(len(texts))
    for length in {len(frames) for frames in past}:
        rows = [row for row, frames in enumerate(past) if len(frames) == length]
        frames = np.stack([past[row] for row in rows])
        videos = imagine_frames(
            model,
            frames,
            instructions=[texts[row] for row in rows],
            num_frames=2 * model.config.num_future_frames,
            num_inference_steps=config.num_language_steps,
            guidance_scale=config.guidance_scale,
            batch_size=config.batch_size,
            description="instructions",
        )
        for row, before, video in zip(rows, frames[:, -1], videos, strict=True):
            moved[row] = moved_cube(before, video[-1]) == texts[row].split(" cube")[0].split()[-1]
    per_episode = episode_means(moved, np.array(owner))
    yield Figure.measured(
        "language_skill_accuracy",
        per_episode,
        "1",
        seeds,
        config.device,
        model=config.model,
        instructions=len(texts),
        num_inference_steps=config.num_language_steps,
        guidance_scale=config.guidance_scale,
        **SKILL_EPISODES,
    )


def measure_outcomes(config: SlowLearningConfig) -> Iterator[Figure]:
    """How well the outcome head tells success and reward, on real and on imagined frames."""
    return measure_outcome_head(
        config, config.seeds(config.num_outcome_episodes), config.num_inference_steps
    )


def measure_reconstruction(config: SlowLearningConfig) -> Iterator[Figure]:
    """What the autoencoder alone makes of the frames that the chunks are cut from."""
    return measure_autoencoder(config, config.num_chunk_episodes, CHUNK_EPISODES)


FIGURES: dict[str, Callable[[SlowLearningConfig], Iterable[Figure]]] = {
    "action_chunk_psnr_db": measure_chunks,
    "gripper_error_px": measure_chunks,
    "cube_error_px": measure_chunks,
    "cube_lost_share": measure_chunks,
    "few_step_quality_ratio": measure_few_steps,
    "sampler_steps_psnr_db": measure_sampler_steps,
    "gripper_error_px_8_chunks": measure_rollout,
    "counterfactual_error_px": measure_counterfactuals,
    "language_skill_accuracy": measure_language,
    "autoencoder_psnr_db": measure_reconstruction,
    "autoencoder_cube_error_px": measure_reconstruction,
    "autoencoder_cube_within_half_px": measure_reconstruction,
    "success_head_auc": measure_outcomes,
    "success_head_ece": measure_outcomes,
    "reward_head_r2": measure_outcomes,
    "reward_head_mae": measure_outcomes,
}
"""Figure to the measurement that it comes from."""


def moved_cube(before: np.ndarray, after: np.ndarray, least_px: float = 3.0) -> str | None:
    """Colour of the cube that moved furthest between two frames ``(H, W, 3)``.

    None where none moved by ``least_px`` pixels. A cube that is in only one of them did not move:
    it may only be hidden.
    """
    distances = {
        colour: float(np.linalg.norm(locate_cube(after, colour) - locate_cube(before, colour)))
        for colour in CUBE_COLOURS
    }
    known = {colour: value for colour, value in distances.items() if value >= least_px}
    return max(known, key=lambda colour: known[colour]) if known else None


def _cut(episodes: list[Episode], model: VideoWorldModel) -> Chunks:
    return Chunks.cut(episodes, model.config.num_past_frames, model.config.num_future_frames)


def _imagine(
    model: VideoWorldModel,
    past: np.ndarray,
    actions: np.ndarray,
    config: SlowLearningConfig,
    what: str,
    num_inference_steps: int | None = None,
) -> np.ndarray:
    return imagine_frames(
        model,
        past,
        actions=actions,
        num_inference_steps=num_inference_steps or config.num_inference_steps,
        batch_size=config.batch_size,
        description=what,
    )


def _cubes_lost(imagined: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Share ``(N,)`` of the cubes in real frames ``(N, H, W, 3)`` that are not in imagined ones."""
    there = np.stack([np.isfinite(locate_cube(real, c)).all(axis=-1) for c in CUBE_COLOURS])
    lost = np.stack([np.isnan(locate_cube(imagined, c)).any(axis=-1) for c in CUBE_COLOURS]) & there
    return np.asarray(lost.sum(axis=0) / there.sum(axis=0))


def _changes(instructions: Sequence[str]) -> np.ndarray:
    return np.array(instructions[1:]) != np.array(instructions[:-1])


def _branch(
    model: VideoWorldModel, seeds: range
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Moments of expert episodes and what the simulator makes of other actions from there on.

    Returns:
        past frames ``(N, P, H, W, 3)``; for each kind of actions ``(N, F, A)`` and the last frames
        ``(N, H, W, 3)`` that they lead to; the episode of each moment.
    """
    num_past, num_future = model.config.num_past_frames, model.config.num_future_frames
    env = make_env(ENV_ID, CHUNK_EPISODES)
    tabletop: Any = env.unwrapped
    expert = make_policy("expert", env)
    donors = [episode.actions for episode in play(env, expert, seeds, "expert episodes")]
    past: list[np.ndarray] = []
    owner: list[int] = []
    actions: dict[str, list[np.ndarray]] = {kind: [] for kind in COUNTERFACTUALS}
    real: dict[str, list[np.ndarray]] = {kind: [] for kind in COUNTERFACTUALS}
    for index, seed in enumerate(tqdm(seeds, desc="counterfactuals", unit="episode")):
        rng = np.random.default_rng(seed)
        observation, _ = env.reset(seed=seed)
        frames = [observation["image"].copy()]
        donor = donors[(index + 1) % len(donors)]
        for step, action in enumerate(donors[index]):
            # One moment in every chunk, with room for a whole other chunk before the end.
            room = len(donors[index]) - step >= num_future
            if step >= num_past - 1 and step % num_future == num_past - 1 and room:
                moment = tabletop.get_state()
                past.append(np.stack(frames[-num_past:]))
                owner.append(index)
                for kind in COUNTERFACTUALS:
                    other = _other_actions(kind, donor, env, num_future, rng)
                    for action_then in other:
                        frame = env.step(action_then)[0]["image"]
                    actions[kind].append(other)
                    real[kind].append(frame.copy())
                    tabletop.set_state(moment)
            observation = env.step(action)[0]
            frames.append(observation["image"].copy())
    env.close()
    return (
        np.stack(past),
        {kind: np.stack(values) for kind, values in actions.items()},
        {kind: np.stack(values) for kind, values in real.items()},
        np.array(owner),
    )


def _other_actions(
    kind: str, donor: np.ndarray, env: Any, num_future: int, rng: np.random.Generator
) -> np.ndarray:
    if kind == "expert":
        start = int(rng.integers(max(1, len(donor) - num_future)))
        return donor[start : start + num_future]
    if kind == "random":
        policy = make_policy("random", env)
        policy.reset(int(rng.integers(2**31)))
        return np.stack([policy.act(None, "") for _ in range(num_future)])
    turn = int(rng.integers(1, num_future))
    signs = rng.choice([-1.0, 1.0], (2, env.action_space.shape[0]))
    return np.repeat(signs, [turn, num_future - turn], axis=0).astype(np.float32)
