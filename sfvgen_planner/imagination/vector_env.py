"""Many imagined worlds that step together, as a Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sfvgen_planner.bounds import tolerance
from sfvgen_planner.data.actions import action_array
from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.imagination.infos import masked_info
from sfvgen_planner.imagination.memory_lives import Life, begin_lives, check_lives, check_memory
from sfvgen_planner.imagination.result import disagreement
from sfvgen_planner.imagination.starts import EnvStarts, Starts

if TYPE_CHECKING:
    from sfvgen_planner.memory import EpisodicMemory
    from sfvgen_planner.world_model import VideoWorldModel
    from sfvgen_planner.world_model.outcome_head import OutcomeHead

DEFAULT_HORIZON = 32


class WorldModelVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Step N imagined worlds in one batch on the model's device.

    One step imagines one video frame. The observation is that frame, ``(H, W, 3)`` uint8: a plain
    image and not a Dict, so that SB3's ``CnnPolicy`` and anything else that takes a camera reads
    it. The observation of ``reset`` is the start's own last frame.

    Reward and termination come from the outcome head. The reward is what it expects the real
    environment to give for the step, in its units. Where success ends an episode in the data that
    the head was trained on (its ``success_ends``), an episode terminates when the head's
    probability that the instruction is achieved reaches ``success_threshold`` on two frames in a
    row, because one imagined frame may be wrong by chance; the reward is 1 more then, because the
    end cuts off what the environment may give later for an instruction that is over. Where the
    environment goes on after success, as Meta-World's do, so does imagination. Without a head or
    an instruction the reward is 0 and nothing terminates. An episode is truncated after ``horizon``
    steps, or as soon as the samples of a step disagree by more than ``max_disagreement``: such a
    step is ``"untrusted"`` and no success. Its instruction does not change.

    With a memory, every world has its own slot of it: each chunk of ``num_future_frames`` steps
    that a world has lived is learnt, and a new episode begins with an empty slot. Without one the
    worlds are imagined from the context window alone, also where the model has a memory.

    Every environment has its own random numbers: what it imagines does not depend on how many
    others run beside it. Worlds with fewer than ``num_past_frames`` frames behind them take a
    context of one frame, as in training; so a step is one call of the model, or two when worlds
    of both kinds are present.

    The infos are ``"instruction"``; ``"success_probability"`` where there is a head and an
    instruction; ``"disagreement"`` after a step with ``num_samples > 1``, see
    :meth:`Imagination.disagreement`; and ``"untrusted"`` after a step with a ``max_disagreement``.

    Args:
        world_model: the model; it must take actions.
        starts: where episodes begin, see :mod:`sfvgen_planner.imagination.starts`.
        num_envs: number of worlds N.
        instruction: what the robot is told in every episode; None leaves it to the starts. It
            decides the reward, and not what happens: that is for the actions alone.
        horizon: steps until an episode is truncated. Short by default, because imagination feeds
            on its own output and drifts, and faster frame by frame than in chunks, which the model
            was trained on.
        outcome_head: judges frames and steps; ``world_model.heads.load_heads`` loads it.
        success_threshold: probability in (0, 1] that counts as success.
        num_inference_steps: denoiser calls per step.
        num_samples: futures imagined per step and world; the first is followed.
        max_disagreement: beyond which imagination is not trusted; needs ``num_samples > 1``. The
            disagreement of steps that went well tells what is usual for a model.
        memory: the fast weights, with ``num_memories`` equal to ``num_envs``.
        autoreset_mode: when an ended episode begins anew, see Gymnasium's ``AutoresetMode``.
            With ``DISABLED``, reset it by ``reset(options={"reset_mask": mask})``.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        SfvgenError: where an argument makes no sense, the model takes no actions, or the memory
            belongs to another model or number of worlds.

    Example:
        >>> from sfvgen_planner.data.environment import make_env
        >>> from sfvgen_planner.world_model import load_world_model
        >>> starts = EnvStarts(make_env("sfvgen/TabletopReturn-v0"))
        >>> envs = WorldModelVectorEnv(load_world_model(), starts, num_envs=64)
        >>> envs.reset(seed=0)[0].shape
        (64, 64, 64, 3)
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        world_model: VideoWorldModel,
        starts: Starts,
        num_envs: int,
        instruction: str | None = None,
        horizon: int = DEFAULT_HORIZON,
        outcome_head: OutcomeHead | None = None,
        success_threshold: float = 0.9,
        num_inference_steps: int = 1,
        num_samples: int = 1,
        max_disagreement: float | None = None,
        memory: EpisodicMemory | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        for name, number in (
            ("num_envs", num_envs),
            ("horizon", horizon),
            ("num_inference_steps", num_inference_steps),
            ("num_samples", num_samples),
        ):
            require_count(name, number)
        require(
            0 < success_threshold <= 1,
            f"success_threshold must be above 0 and at most 1, got {success_threshold}",
        )
        if max_disagreement is not None:
            require(
                num_samples > 1,
                "max_disagreement compares several samples: give num_samples of at least 2 too",
            )
            require(
                max_disagreement > 0,
                f"max_disagreement must be above 0, got {max_disagreement}",
            )
        modes = self.metadata["render_modes"]
        require(
            render_mode in (None, *modes), f"render_mode must be one of {modes}, got {render_mode}"
        )
        autoreset_modes = [mode.value for mode in AutoresetMode]
        require(
            isinstance(autoreset_mode, AutoresetMode) or autoreset_mode in autoreset_modes,
            f"autoreset_mode must be one of {autoreset_modes}, got {autoreset_mode!r}",
        )
        require(
            instruction is None or isinstance(instruction, str),
            f"instruction must be a text or None, got {instruction!r}",
        )
        config = world_model.config
        require(len(config.action_low) > 0, "a world model without actions cannot be stepped")
        if memory is not None:
            check_memory(memory, world_model)
            require(
                memory.num_memories == num_envs,
                f"{num_envs} imagined worlds need num_memories={num_envs}, one for each, "
                f"got a memory of {memory.num_memories}",
            )
        self.world_model = world_model
        self.starts = starts
        self.num_envs = num_envs
        self.instruction = instruction
        self.horizon = horizon
        self.outcome_head = outcome_head
        self.success_threshold = success_threshold
        self.num_inference_steps = num_inference_steps
        self.num_samples = num_samples
        self.max_disagreement = max_disagreement
        self.memory = memory
        self._life = Life()
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        if isinstance(starts, EnvStarts) and (fps := starts.env.metadata.get("render_fps")):
            # As fast as what is imagined.
            self.metadata["render_fps"] = max(1, round(fps / world_model.config.frame_skip))
        self.render_mode = render_mode
        side = config.image_size
        self.single_observation_space = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.single_action_space = gym.spaces.Box(
            np.float32(config.action_low), np.float32(config.action_high), dtype=np.float32
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._random = [seeding.np_random() for _ in range(num_envs)]
        self._noise = [torch.Generator() for _ in range(num_envs)]
        self._tokens: dict[str, torch.Tensor] = {}
        # (N, C, f, h, w), the latest frames last: the context, and the chunk for the memory.
        self._past: torch.Tensor | None = None
        self._actions = np.zeros((num_envs, config.num_future_frames, len(config.action_low)))
        self._num_past = np.zeros(num_envs, int)
        self._frames = np.zeros((num_envs, side, side, 3), np.uint8)
        self._instructions = np.full(num_envs, "", object)
        self._probability = np.zeros(num_envs)
        self._reward = np.zeros(num_envs)
        self._disagreement = np.zeros(num_envs)
        self._num_steps = np.zeros(num_envs, int)
        self._ended = np.zeros(num_envs, bool)

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The random number generators, one per environment."""
        return tuple(generator for generator, _ in self._random)

    @np_random.setter  # type: ignore[override]
    def np_random(self, value: Sequence[np.random.Generator]) -> None:
        self._random = [(generator, -1) for generator in value]

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of ``np_random``; -1 for generators that were set."""
        return tuple(seed for _, seed in self._random)

    @torch.no_grad()
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: one per environment, or an int for ``seed, seed + 1, ...``; None goes on with
                the random numbers at hand.
            options: ``{"reset_mask": mask}`` with a bool array ``(N,)`` resets some environments
                only.

        Returns:
            Observations ``(N, H, W, 3)`` uint8, and infos.

        Raises:
            SfvgenError: where the seeds or the mask have the wrong shape, an option is unknown, or
                the starts' frames do not fit the model.
        """
        seeds = [seed] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = range(int(seeds), int(seeds) + self.num_envs)
        require(len(seeds) == self.num_envs, f"{self.num_envs} environments got {len(seeds)} seeds")
        unknown = set(options or {}) - {"reset_mask"}
        require(not unknown, f"reset knows the option 'reset_mask' alone, got {sorted(unknown)}")
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        require(
            isinstance(mask, np.ndarray)
            and mask.shape == (self.num_envs,)
            and mask.dtype == bool
            and bool(mask.any()),
            f"reset_mask must be a bool array of shape ({self.num_envs},) with a True value, "
            f"got {mask!r}",
        )
        require(
            self._past is not None or bool(mask.all()),
            "the first reset must be of all environments, got a reset_mask",
        )
        for row, one in enumerate(seeds):
            if mask[row] and one is not None:
                self._random[row] = seeding.np_random(int(one))
        self._begin(mask)
        return self._frames.copy(), self._infos(mask, np.zeros_like(mask))

    @torch.no_grad()
    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Imagine the next frame of every world.

        Args:
            actions: ``(N, A)`` in the environment's units.

        Returns:
            Observations ``(N, H, W, 3)`` uint8, rewards ``(N,)`` float64, terminations and
            truncations ``(N,)`` bool, and infos; with ``SAME_STEP`` also the ``"final_obs"`` and
            ``"final_info"`` of episodes that ended.

        Raises:
            SfvgenError: before ``reset``; where an action has the wrong shape, is not finite or
                leaves the bounds; with ``DISABLED``, where an episode has ended; or where another
                env has begun an episode in a world's memory.
        """
        require(self._past is not None, "nothing has been imagined yet: call reset() first")
        over = np.flatnonzero(self._ended).tolist()
        require(
            not over or self.autoreset_mode is not AutoresetMode.DISABLED,
            f"the imagined episodes of environments {over} have ended: reset them first",
        )
        stepped = ~self._ended
        checked = self._checked_actions(actions, stepped)
        if self.memory is not None:
            check_lives(self.memory, np.flatnonzero(stepped).tolist(), self._life)
        if over:
            self._begin(self._ended)
        previous = self._probability.copy()
        num_past = self.world_model.config.num_past_frames
        seen = num_past if self.memory is None else self.memory.num_past_frames
        full = np.minimum(self._num_past, seen) >= num_past
        for mask, length in ((stepped & full, num_past), (stepped & ~full, 1)):
            if mask.any():
                self._imagine(mask, length, checked)
        self._remember(stepped, checked)
        sure = np.minimum(previous, self._probability) >= self.success_threshold
        untrusted = self._untrusted()
        terminations = stepped & sure & ~untrusted & self._success_ends()
        truncations = stepped & (untrusted | (self._num_steps >= self.horizon))
        rewards = np.where(stepped, self._reward, 0.0) + terminations
        self._ended = terminations | truncations
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            ended = self._ended
            infos["final_obs"] = np.full(self.num_envs, None, object)
            for row in np.flatnonzero(ended):
                infos["final_obs"][row] = self._frames[row].copy()
            infos["final_info"] = self._infos(ended, ended)
            infos["_final_obs"], infos["_final_info"] = ended.copy(), ended.copy()
            stepped &= ~ended
            self._begin(ended)
        infos |= self._infos(np.ones_like(stepped), stepped)
        return self._frames.copy(), rewards, terminations, truncations, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The latest frame of every world, ``(H, W, 3)`` uint8; None without a render mode."""
        return None if self.render_mode is None else tuple(self._frames.copy())

    def _begin(self, mask: np.ndarray) -> None:
        """Begin the episodes of some environments."""
        rows = np.flatnonzero(mask)
        config = self.world_model.config
        num_past = config.num_past_frames
        num_kept = num_past + (0 if self.memory is None else config.num_future_frames)
        starts = [self.starts(self._random[row][0]) for row in rows]
        pasts = [start.frames[-num_past:] for start in starts]
        side = config.image_size
        for height, width in {past.shape[1:3] for past in pasts}:
            require(
                height == width == side,
                f"the starts' frames must be {side} x {side} pixels, as the world model's, "
                f"got {height} x {width}",
            )
        latents = self.world_model.encode(np.concatenate(pasts)[None])[0]
        if self._past is None:
            channels, _, height, width = latents.shape
            self._past = latents.new_zeros(self.num_envs, channels, num_kept, height, width)
        lengths = [len(past) for past in pasts]
        for row, start, latent in zip(rows, starts, latents.split(lengths, dim=1), strict=True):
            # The world stood still before an episode's first frame.
            self._past[row] = latent[:, :1]
            self._past[row, :, -latent.shape[1] :] = latent
            self._frames[row] = start.frames[-1]
            given = self.instruction
            self._instructions[row] = start.instruction if given is None else given
            self._noise[row].manual_seed(int(self._random[row][0].integers(2**63)))
        self._num_past[rows] = lengths
        self._num_steps[rows] = 0
        self._ended = self._ended & ~mask
        if self.memory is not None:
            begin_lives(self.memory, rows.tolist(), self._life)
        present = self._past[torch.from_numpy(rows), :, -1]
        self._judge(mask, present, present)

    def _imagine(self, mask: np.ndarray, length: int, actions: torch.Tensor) -> None:
        """Add one frame to some worlds whose context is ``length`` frames long."""
        assert self._past is not None
        rows = np.flatnonzero(mask)
        past = self._past[torch.from_numpy(rows)]
        repeated = rows.repeat(self.num_samples)
        model, memory = self.world_model, self.memory
        with model.without_memory() if memory is None else memory.showing(rows.tolist()):
            output = model(
                past[:, :, -length:].repeat_interleave(self.num_samples, dim=0),
                actions=actions[torch.from_numpy(repeated), None],
                num_frames=1,
                num_inference_steps=self.num_inference_steps,
                generator=[self._noise[row] for row in repeated],
                output_type="latent",
            )
        samples = output.latents.unflatten(0, (len(rows), self.num_samples))
        self._disagreement[rows] = disagreement(samples)[:, 0].cpu().numpy()
        followed = samples[:, 0].to(past.dtype)
        self._past[torch.from_numpy(rows)] = torch.cat([past[:, :, 1:], followed], dim=2)
        self._frames[rows] = self.world_model.decode(followed)[:, 0]
        self._num_past[rows] += 1
        self._num_steps[rows] += 1
        self._judge(mask, past[:, :, -1], followed[:, :, 0])

    def _remember(self, stepped: np.ndarray, actions: torch.Tensor) -> None:
        """Learn the chunks that are complete with this step, all in one batch."""
        if self.memory is None:
            return
        assert self._past is not None
        size = self.world_model.config.num_future_frames
        rows = np.flatnonzero(stepped)
        self._actions[rows, (self._num_steps[rows] - 1) % size] = actions.numpy()[rows]
        complete = rows[self._num_steps[rows] % size == 0]
        if len(complete):
            lived = self._past[torch.from_numpy(complete)]
            self.memory.write_batch(
                lived[:, :, :-size],
                lived[:, :, -size:],
                self._instructions[complete].tolist(),
                self._actions[complete],
                complete.tolist(),
                measure=False,
            )

    def _judge(self, mask: np.ndarray, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take down success and reward of n worlds, whose latents ``(n, C, h, w)`` were and are."""
        self._probability[mask] = self._reward[mask] = 0
        judged = mask & self._judged()
        if self.outcome_head is None or not judged.any():
            return
        texts = list(self._instructions[judged])
        for text in set(texts) - self._tokens.keys():
            self._tokens[text] = self.outcome_head.tokenize(self.world_model, [text])[0]
        token_ids = torch.stack([self._tokens[text] for text in texts]).to(after.device)
        head = self.outcome_head.to(after.device)
        chosen = torch.from_numpy(judged[mask])
        logits, rewards = head(before[chosen].float(), after[chosen].float(), token_ids)
        self._probability[judged] = logits.float().sigmoid().cpu().numpy()
        self._reward[judged] = rewards.float().cpu().numpy()

    def _judged(self) -> np.ndarray:
        """Which environments ``(N,)`` have a reward."""
        return (self._instructions != "") & (self.outcome_head is not None)

    def _success_ends(self) -> bool:
        head = self.outcome_head
        return head is not None and bool(head.config.success_ends)

    def _untrusted(self) -> np.ndarray:
        """In which environments ``(N,)`` the samples of the last step disagree too much."""
        limit = np.inf if self.max_disagreement is None else self.max_disagreement
        return self._disagreement > limit

    def _infos(self, mask: np.ndarray, stepped: np.ndarray) -> dict[str, Any]:
        """Infos of some environments, of which some have made a step."""
        infos: dict[str, Any] = {}
        compared = mask & stepped & (self.num_samples > 1)
        for key, values, where in (
            ("instruction", self._instructions, mask),
            ("success_probability", self._probability, mask & self._judged()),
            ("disagreement", self._disagreement, compared),
            ("untrusted", self._untrusted(), compared & (self.max_disagreement is not None)),
        ):
            if where.any():
                infos[key], infos[f"_{key}"] = masked_info(values, where), where.copy()
        return infos

    def _checked_actions(self, actions: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        """Actions ``(N, A)`` float32; those outside the mask are not looked at."""
        shape = self.action_space.shape
        values = action_array(actions, f"actions must be {shape} numbers").copy()
        require(values.shape == shape, f"actions must have the shape {shape}, got {values.shape}")
        space = self.single_action_space
        assert isinstance(space, gym.spaces.Box)
        slack = tolerance(space.low, space.high)
        low, high = space.low - slack, space.high + slack
        # NaN compares false.
        wrong = mask & ~((values >= low) & (values <= high)).all(axis=1)
        if wrong.any():
            row = int(wrong.argmax())
            raise SfvgenError(
                f"actions must be finite and lie between {space.low.tolist()} and "
                f"{space.high.tolist()}, but that of environment {row} is {values[row].tolist()}"
            )
        return torch.from_numpy(values)
