"""Share of sfvgen/TabletopReturn-v0 episodes that the scripted expert solves, as JSON."""

from __future__ import annotations

import argparse
import json

import gymnasium as gym
import numpy as np
import sfvgen_envs
from sfvgen_envs.tabletop_instructions import RECALLS
from sfvgen_policies import make_policy


def measure(
    policy: str, noise: float, level: int, recall: str, episodes: int, seed: int
) -> dict[str, object]:
    """Run ``episodes`` episodes with seeds from ``seed`` on and return the figures."""
    sfvgen_envs.register_envs()
    env = gym.make(
        "sfvgen/TabletopReturn-v0",
        level=level,
        recall=recall,
        image_size=16,  # the expert does not look
        disable_env_checker=True,
    )
    actor = make_policy(policy, env, **({"noise": noise} if policy == "expert" else {}))
    solved, skills, distances, steps = [], [], [], 0
    for episode_seed in range(seed, seed + episodes):
        observation, info = env.reset(seed=episode_seed)
        actor.reset(episode_seed)
        terminated = False
        while not terminated:
            action = actor.act(observation, info["instruction"])
            observation, _, terminated, _, info = env.step(action)
            steps += 1
        solved.append(info["is_success"])
        skills += [result["success"] for result in info["instruction_results"]]
        distances.append(info["instruction_results"][-1]["distance_m"])
    env.close()
    return {
        "policy": policy,
        "noise": noise,
        "level": level,
        "recall": recall,
        "seeds": [seed, seed + episodes - 1],
        "episodes": episodes,
        "episode_success_rate": float(np.mean(solved)),
        "skill_success_rate": float(np.mean(skills)),
        "mean_steps_per_skill": steps / len(skills),
        "mean_distance_of_last_m": float(np.mean(distances)),
    }


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="expert", choices=("expert", "random"))
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--level", type=int, default=4)
    parser.add_argument("--recall", default="first", choices=RECALLS)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=10_000)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
