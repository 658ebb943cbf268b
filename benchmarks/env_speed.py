"""Camera steps a second of sfvgen/TabletopReturn-v0 on one core, as JSON.

A camera step is one env.step (0.2 s of physics) with its rendered image. The time is the process's
own CPU time over all its threads, resets included, so other load on the machine hardly matters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time

os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's software rasteriser: no helper threads

import gymnasium as gym
import sfvgen_envs
from sfvgen_policies import make_policy


def measure(num_steps: int, level: int, image_size: int, render_quality: str) -> dict[str, object]:
    """Run the random policy for ``num_steps`` steps and return the figures."""
    sfvgen_envs.register_envs()
    env = gym.make(
        "sfvgen/TabletopReturn-v0",
        level=level,
        image_size=image_size,
        render_quality=render_quality,
        disable_env_checker=True,
    )
    policy = make_policy("random", env)
    policy.reset(0)
    seed = 0
    observation, info = env.reset(seed=seed)  # opens the renderer, outside the measured time
    start = time.process_time()
    for _ in range(num_steps):
        action = policy.act(observation, info["instruction"])
        observation, _, terminated, _, info = env.step(action)
        if terminated:
            seed += 1
            observation, info = env.reset(seed=seed)
    seconds = time.process_time() - start
    env.close()
    return {
        "name": "env_frames_per_second",
        "value": num_steps / seconds,
        "unit": "1/s",
        "num_steps": num_steps,
        "level": level,
        "image_size": image_size,
        "render_quality": render_quality,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
    }


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=2000)
    parser.add_argument("--level", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--render-quality", default="fast", choices=("fast", "pretty"))
    arguments = parser.parse_args()
    print(json.dumps(measure(**vars(arguments)), indent=2))


if __name__ == "__main__":
    main()
