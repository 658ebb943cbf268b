"""The slow-fast loop in a live environment: act, remember, consolidate (paper, section 3.3)."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sfvgen_policies import Policy
from tqdm import tqdm

from sfvgen_planner.data.collect import collect_recipe
from sfvgen_planner.data.environment import Environment
from sfvgen_planner.data.episode import Episode, EpisodeSource
from sfvgen_planner.data.player import EpisodePlayer, EpisodeTask
from sfvgen_planner.data.recipe import DataRecipe, DataSource
from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.files import prepare_folder, write_json
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.memory.loop import earlier_adapters, slow_fast_loop
from sfvgen_planner.memory.loop_recipe import LoopRecipe
from sfvgen_planner.planning.policy import PlanningPolicy
from sfvgen_planner.planning.video_plan import VideoPlanConfig, VideoPlanner
from sfvgen_planner.world_model import load_world_model
from sfvgen_planner.world_model.checkpoint import FINAL_FOLDER
from sfvgen_planner.world_model.heads import load_heads, required_inverse_dynamics
from sfvgen_planner.world_model.run_record import recipe_settings
from sfvgen_planner.world_model.trainer import begin_training

PLANNER = "planner"
"""The policy that plans with the present model and its memory."""
DATA_FOLDER = "data"
_SETTINGS_FILE = "online.json"
_WRITES = "memory_writes"


def online_loop(
    recipe: LoopRecipe, source: DataSource, num_rounds: int, out: Path, init_from: Path
) -> Path:
    """Act, remember and consolidate, round after round; resume whatever `out` holds already.

    Each round plays `source.episodes` episodes under the present model, whose memory learns each
    one as it happens, and adds them to the store `out/data`. Then the slow-fast loop goes on from
    that model over all episodes of the store (Algorithm 1b) and ends in `out/round_k/model`, which
    the next round begins with. The loop writes its memories anew: those of an episode belong to
    the weights that it was played under.

    Args:
        recipe: The memory, its curriculum and the optimisation of each round.
        source: The environment, the policy (also `planner`, the video planner; its kwargs are
            those of `VideoPlanConfig`) and the episodes of a round. Episode i of the run, counted
            from 0, has seed `source.seed + i`.
        num_rounds: Rounds in all; with more, a finished run goes on.
        out: Folder of the store and the rounds. Episodes that are in `out/data` before the first
            round are learnt from as well.
        init_from: A checkpoint folder that has been through a loop with the recipe's memory.

    Returns:
        The last round's checkpoint folder.

    Raises:
        SfvgenError: Before anything is written: the recipe or the model has no memory, or they
            have different ones; the environment or the policy can't be made or does not fit the
            model; `out` can't be written or holds another run. Later: there is nothing to recall
            in the episodes, the policy gives wrong actions, the disk is full.
        KeyboardInterrupt: The run was interrupted; the same call resumes it.
    """
    require_count("num_rounds", num_rounds)
    _check_memory(recipe, init_from)
    # Refused before the first episode, not after it.
    required_inverse_dynamics(load_heads(init_from), init_from)
    settings = {"init_from": str(init_from.resolve()), **source.model_dump()}
    settings |= {f"recipe.{name}": value for name, value in recipe_settings(recipe).items()}
    _check_settings(out, settings)
    accelerator = begin_training(recipe.seed, recipe.mixed_precision)
    require(
        accelerator.num_processes == 1,
        f"episodes are played by one process, but there are {accelerator.num_processes}; start "
        "the online loop without a launcher",
    )
    present = init_from
    for index in tqdm(range(num_rounds), desc="online loop", unit="round"):
        folder = out / f"round_{index}"
        # Appears in full, as the last thing of a round.
        if not (folder / FINAL_FOLDER).is_dir():
            num_episodes = _play(source, index + 1, out, present, accelerator.device, settings)
            known = num_episodes - source.episodes if index else 0
            slow_fast_loop(recipe, out / DATA_FOLDER, folder, present, known)
        present = folder / FINAL_FOLDER
    return present


class RememberingPlayer(EpisodePlayer):
    """Plays episodes in an `ImaginationWrapper`, whose memory learns each one as it happens.

    An episode's `info` tells under `memory_writes` the losses of each write (`MemoryWrite`).

    Args:
        env_id: Gymnasium id, also `module:id`.
        checkpoint: Checkpoint folder of the model and its memory.
        device: What they run on.
    """

    def __init__(self, env_id: str, checkpoint: Path, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._model = load_world_model(checkpoint).to(device)
        self._memory = EpisodicMemory.from_pretrained(self._model, checkpoint)
        self._imagination: ImaginationWrapper | None = None
        super().__init__(env_id, self._model.config.frame_skip, self._model.config.image_size)

    def make_env(self, source: EpisodeSource) -> Environment:
        """Make the environment with the memory around it."""
        env = super().make_env(source)
        try:
            self._imagination = ImaginationWrapper(env, self._model, self._memory)
        except SfvgenError:
            env.close()
            raise
        return self._imagination

    def make_policy(self, source: EpisodeSource, env: Environment) -> Policy:
        """Make the policy; `planner` plans in the environment's own imagination."""
        if source.policy != PLANNER:
            return super().make_policy(source, env)
        assert isinstance(env, ImaginationWrapper)
        config = VideoPlanConfig(**source.policy_kwargs)
        return PlanningPolicy(env, VideoPlanner.from_pretrained(self._checkpoint, config))

    def play(self, task: EpisodeTask) -> Episode:
        """Play one episode."""
        episode = super().play(task)
        assert self._imagination is not None
        writes = [write.losses for write in self._imagination.memory_writes]
        # The last step may tell of the last write once more.
        info = {key: value for key, value in episode.info.items() if key != "memory_write"}
        return replace(episode, info={**info, _WRITES: writes})


def _play(
    source: DataSource,
    num_rounds: int,
    out: Path,
    checkpoint: Path,
    device: torch.device,
    settings: dict[str, Any],
) -> int:
    """Play what is missing of so many rounds' episodes; how many the store then holds."""
    player = RememberingPlayer(source.env_id, checkpoint, device)
    with closing(player):
        _, policy = player.prepare(source.episode_source())
        data = out / DATA_FOLDER
        require(
            getattr(policy, "follows_instructions", True) or data.is_dir(),
            f"the policy {source.policy!r} does not follow instructions, so nothing in its "
            f"episodes can be recalled; put others into {data} first (sfvgen collect), or choose "
            "another policy",
        )
        prepare_folder(out)
        write_json(out / _SETTINGS_FILE, settings)
        so_far = source.model_copy(update={"episodes": num_rounds * source.episodes})
        recipe = DataRecipe(
            sources=[so_far], frame_skip=player.frame_skip, image_size=player.image_size
        )
        store = collect_recipe(recipe, data, player=player)
    seeds, played = so_far.seeds, so_far.episode_source()
    unlived = [
        entry.seed
        for entry in store.entries
        if entry.seed in seeds and entry.source == played and _WRITES not in entry.info
    ]
    require(
        not unlived,
        f"{data} has the episodes of the seeds {unlived[:3]} from elsewhere, which no memory has "
        "lived; choose another --seed",
    )
    return len(store)


def _check_memory(recipe: LoopRecipe, init_from: Path) -> None:
    """Refuse a recipe or a model without a memory, and two that differ."""
    wanted = recipe.memory_config
    if wanted is None:
        raise SfvgenError(
            f"the recipe {recipe.name} has the variant none, so there is nothing to remember with; "
            "choose another variant"
        )
    require(
        earlier_adapters(recipe, wanted, init_from) is not None,
        f"the model {init_from} has no memory; put it through `sfvgen loop` first, or choose "
        "another, such as tabletop_memory",
    )


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on in the folder of a run with other settings."""
    file = out / _SETTINGS_FILE
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        raise SfvgenError(f"cannot read {file} ({error}); choose another output folder") from error
    for name in [*settings, *found]:
        was, now = found.get(name), settings.get(name)
        require(
            was == now,
            f"{out} holds an online loop with {name} = {was}, but {now} was asked for; give "
            "another output folder, or the same settings",
        )
