"""The slow-fast objective: slow weights that know how to use fast ones (paper, Algorithm 1b)."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory.adapter import Adapters, FastWeights
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.memory.contexts import Context
from sfvgen_planner.memory.fast_learning import FastLearner
from sfvgen_planner.memory.loop_recipe import LoopRecipe, LoopStage
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.kernels import use_trainable_attention
from sfvgen_planner.world_model.objective import draw_timesteps
from sfvgen_planner.world_model.recipe import WorldModelRecipe
from sfvgen_planner.world_model.slow_learning import (
    LANGUAGE,
    SlowBatch,
    SlowObjective,
    SlowWindows,
    mean_error,
    pick,
    slow_batches,
    told_starts,
)
from sfvgen_planner.world_model.trainer import shared_seed


class Writes(NamedTuple):
    """What is written into fresh memories before they are judged.

    Attributes:
        windows: `(chunks, memories, channels, frames, h, w)`, each chunk behind its past.
        num_past: Past frames in them.
        noise: `(chunks, steps, memories * draws, channels, frames, h, w)`.
        timesteps: `(chunks, steps, memories * draws)`.
        token_ids: `(tokens,)`, those of no instruction.
    """

    windows: Tensor
    num_past: int
    noise: Tensor
    timesteps: Tensor
    token_ids: Tensor


class Stored(NamedTuple):
    """Memories that were written earlier, as they were then.

    Attributes:
        fast: The fast weights.
        num_chunks: How many chunks each has written.
    """

    fast: FastWeights
    num_chunks: int


class Rewritten(NamedTuple):
    """Memories that have just been written, and some of their writes to take gradients through.

    Attributes:
        fast: The fast weights after all chunks.
        num_chunks: `(memories,)`, how many chunks each has written.
        again: The chosen writes, side by side: one chunk of `writes * memories` memories.
        before: Their fast weights before it.
        chunks: `(writes * memories,)`, how many chunks they had written before it.
        scale: Chunks for each chosen write, a scalar.
    """

    fast: FastWeights
    num_chunks: Tensor
    again: Writes
    before: FastWeights
    chunks: Tensor
    scale: Tensor


class LoopBatch(NamedTuple):
    """One step of the outer loop.

    Attributes:
        writes: What the memories are to write, or the memories.
        judged: Later windows of the same episodes, `memories * samples_per_memory`, in order.
        slow: Ordinary windows, which are imagined without memory; None for none.
    """

    writes: Writes | Stored | Rewritten
    judged: SlowBatch
    slow: SlowBatch | None


class SlowFastObjective(nn.Module):
    """Fast-learns fresh memories, then takes Eq. 2's loss under slow and fast weights.

    Attributes:
        slow: The loss under the slow weights alone.
        adapters: The adapters.
        learner: Writes the memories.

    Args:
        model: Its `unet` has the adapters.
        adapters: The adapters.
        config: How the memories learn.
        second_order: Let gradients flow through the writes.
        change_weight: How much more cells that change count in judged windows; see
            `SlowObjective.errors`.
    """

    def __init__(
        self,
        model: VideoWorldModel,
        adapters: Adapters,
        config: MemoryConfig,
        second_order: bool = False,
        change_weight: float = 0.0,
    ) -> None:
        super().__init__()
        # Fused attention can't be differentiated twice, either.
        use_trainable_attention(model.unet)
        self.slow = SlowObjective(model)
        self.adapters = adapters
        self._config = config
        self.learner = FastLearner(self.slow, adapters, config)
        self._second_order = second_order
        self._change_weight = change_weight

    def forward(
        self, writes: Writes | Stored | Rewritten, judged: SlowBatch, slow: SlowBatch | None
    ) -> Tensor:
        """Mean squared error over all samples; the arguments are the fields of `LoopBatch`."""
        fast: FastWeights
        num_chunks: Tensor | int
        if isinstance(writes, Stored):
            fast, num_chunks = writes.fast, writes.num_chunks
        elif isinstance(writes, Rewritten):
            fast, num_chunks = self._rewrite(writes), writes.num_chunks
        else:
            fast, num_chunks = self.write(writes), len(writes.windows)
        parts = [self.errors(fast, num_chunks, judged, self._change_weight)]
        if slow is not None:
            parts.append(self.slow.errors(slow))
        return mean_error(*parts)

    def write(self, writes: Writes) -> FastWeights:
        """Fresh memories after all their chunks (the inner loop of Algorithm 1b)."""
        fast = self.adapters.start(writes.windows.shape[1])
        for chunks, batches in self.chunks(writes):
            fast, _ = self.learner.learn(fast, chunks, batches, self._second_order)
        return fast

    def chunks(self, writes: Writes) -> Iterator[tuple[Tensor, list[SlowBatch]]]:
        """For each chunk its index, `(memories,)`, and the batches of its write's steps."""
        num_memories = writes.windows.shape[1]
        draws, steps = self._config.num_noise_draws, self._config.num_steps
        samples = num_memories * draws
        zeros = writes.windows.new_zeros(samples)
        num_future = writes.windows.shape[3] - writes.num_past
        template = SlowBatch(
            latents=writes.windows[0],
            num_past=writes.num_past,
            actions=writes.windows.new_zeros(samples, num_future, self.slow.action_size),
            token_ids=writes.token_ids.expand(samples, -1),
            actions_given=zeros,
            context_given=zeros,
            noise=writes.noise[0, 0],
            context_noise=writes.windows.new_zeros(()),
            timesteps=writes.timesteps[0, 0],
        )
        for index, windows in enumerate(writes.windows):
            latents = windows.repeat_interleave(draws, dim=0)
            batches = [
                template._replace(
                    latents=latents,
                    noise=writes.noise[index, step],
                    timesteps=writes.timesteps[index, step],
                )
                for step in range(steps)
            ]
            yield torch.full((num_memories,), index, device=windows.device), batches

    def _rewrite(self, given: Rewritten) -> FastWeights:
        """The memories as they are, with gradients through where they start and the chosen writes.

        A write's gradient is that of what it adds to its memory; that this changes what later
        writes add, a difference of a difference, is left out.
        """
        before = self._from_start(given.before)
        ((_, batches),) = self.chunks(given.again)
        after, _ = self.learner.steps(before, given.chunks, batches, create_graph=True)
        num_memories = len(given.num_chunks)
        fast = {}
        for name, value in self._from_start(given.fast).items():
            added = (after[name] - before[name]).unflatten(0, (-1, num_memories)).sum(dim=0)
            fast[name] = value + given.scale * (added - added.detach())
        return fast

    def _from_start(self, fast: FastWeights) -> FastWeights:
        """Memories as they are, with the gradient of the parameters that they started at."""
        start = self.adapters.start(len(next(iter(fast.values()))))
        return {name: value + (start[name] - start[name].detach()) for name, value in fast.items()}

    def errors(
        self,
        fast: FastWeights,
        num_chunks: Tensor | int,
        judged: SlowBatch,
        change_weight: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Each sample's summed squared error under slow and fast weights, and its size."""
        num_memories = len(next(iter(fast.values())))
        chunks = num_chunks + judged.latents.new_zeros(num_memories, dtype=torch.long)
        with self.adapters.placed(fast, chunks):
            return self.slow.errors(judged, change_weight)


class LoopBatches:
    """Draws the outer loop's batches.

    A memory always begins with its episode and writes every whole chunk before the window that it
    is judged by, as it does in use. All memories of a batch have the same number of chunks.

    Args:
        table: Encoded episodes.
        model: For its tokenizer, scheduler and window.
        recipe: What is drawn.
        stage: How much of it.

    Raises:
        SfvgenError: No recall in the table has at most the stage's `max_chunks` before it.
    """

    def __init__(
        self, table: FrameTable, model: VideoWorldModel, recipe: LoopRecipe, stage: LoopStage
    ) -> None:
        self._table = table
        self._stage = stage
        self._recall_share = recipe.recall_share
        self._learning = recipe.training_config(stage)
        self._scheduler = model.scheduler
        self._num_past: int = model.config.num_past_frames
        self._num_future: int = model.config.num_future_frames
        self._windows = SlowWindows(table, model, recipe.conditions)
        self._no_tokens = model.tokenize([""])[0].to(table.frames.device)
        self._begins = episode_begins(table)
        self._recalls = self._recall_groups(recipe)
        starts = table.window_starts(self._num_past + self._num_future)
        numbers = self._chunks_before(starts)
        self._others = {
            number: starts[numbers == number]
            for number in self._recalls
            if (numbers == number).any()
        }
        self._slow: Callable[[torch.Generator], SlowBatch] | None = None
        if stage.num_slow_samples:
            optimisation = stage.optimisation.model_copy(
                update={"batch_size": stage.num_slow_samples}
            )
            world_model = WorldModelRecipe(
                num_past_frames=self._num_past,
                num_future_frames=self._num_future,
                conditions=recipe.conditions,
                optimisation=optimisation,
            )
            self._slow = slow_batches(table, model, world_model)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self._table.frames.device

    @property
    def horizons(self) -> list[int]:
        """The numbers of chunks that recalls come after."""
        return sorted(self._recalls)

    def __call__(self, generator: torch.Generator) -> LoopBatch:
        """One step's batch."""
        num_chunks = self.draw_horizon(generator)
        writes, judged = self.draw(num_chunks, generator)
        return LoopBatch(writes, judged, self.slow(generator))

    def draw_horizon(self, generator: torch.Generator) -> int:
        """The number of chunks before a step's windows."""
        # Drawn on the host, and the same on all processes, which wait for each other.
        host = np.random.default_rng(shared_seed(generator))
        return int(host.choice(self.horizons))

    def slow(self, generator: torch.Generator) -> SlowBatch | None:
        """The ordinary samples of a step, if there are any."""
        return None if self._slow is None else self._slow(generator)

    def draw(
        self, num_chunks: int, generator: torch.Generator, recall_share: float | None = None
    ) -> tuple[Writes, SlowBatch]:
        """Memories of `num_chunks` chunks and the windows that they are judged by."""
        first, mix = self.choose(num_chunks, generator, recall_share)
        judged = self.judged(first, mix, generator)
        return self.writes(first, num_chunks, generator), judged

    def choose(
        self, num_chunks: int, generator: torch.Generator, recall_share: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """First rows and mixes of conditions of the memories' windows, `(memories,)` each."""
        device, count = self._table.frames.device, self._stage.num_memories
        share = self._recall_share if recall_share is None else recall_share

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        rows, weights = self._recalls[num_chunks]
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
        first = rows[chosen]
        mix = torch.full_like(first, LANGUAGE)
        others = self._others.get(num_chunks)
        if others is not None:
            is_other = uniform(count) >= share
            first = torch.where(is_other, pick(others, uniform(count)), first)
            mix = torch.where(is_other, self._windows.draw_mixes(count, generator), mix)
        return first, mix

    def judged(
        self,
        first: Tensor,
        mix: Tensor,
        generator: torch.Generator,
        context: Context | None = None,
        num_chunks: int = 0,
    ) -> SlowBatch:
        """The windows that begin at these rows, once for each of a memory's samples.

        Args:
            first: First rows of the windows.
            mix: Mixes of conditions.
            generator: Source of the noise.
            context: Their past frames; by default the last f_p.
            num_chunks: Whole chunks of their episodes before them, for a context.
        """
        samples = self._stage.samples_per_memory
        first = first.repeat_interleave(samples)
        past = None
        if context is not None:
            longest = self._num_future * (num_chunks + 1)
            present = first + self._num_past - 1
            past = context(self._begins[present], present, self._num_past, longest)
        return self._windows.batch(
            first,
            mix.repeat_interleave(samples),
            self._num_past,
            self._num_past + self._num_future,
            generator,
            past,
        )

    def writes(self, first: Tensor, num_chunks: int, generator: torch.Generator) -> Writes:
        """The first `num_chunks` chunks of the windows' episodes."""
        config, begins = self._learning, self._begins[first]
        assert config is not None
        device = begins.device
        num_past = min(self._num_past, config.max_past_frames or self._num_past)
        offsets = torch.arange(1 - num_past, self._num_future + 1, device=device)
        firsts = begins + self._num_future * torch.arange(num_chunks, device=device)[:, None]
        # The world stood still before an episode's first frame.
        rows = torch.maximum(firsts[:, :, None] + offsets, begins[:, None])
        windows = self._table.frames[rows].float().transpose(2, 3)
        shape = (num_chunks, config.num_steps, len(begins) * config.num_noise_draws)
        uniform = torch.rand(shape, generator=generator, device=device)
        noise = torch.randn((*shape, *windows.shape[2:]), generator=generator, device=device)
        return Writes(
            windows=windows,
            num_past=num_past,
            noise=noise,
            timesteps=draw_timesteps(self._scheduler, uniform, config.min_noise),
            token_ids=self._no_tokens,
        )

    def _recall_groups(self, recipe: LoopRecipe) -> dict[int, tuple[Tensor, Tensor]]:
        """For each number of chunks the rows and weights of the windows that recall."""
        table, last = self._table, self._num_past - 1
        starts = told_starts(table, self._num_past)
        # The context begins in the episode, and the instruction has only just come.
        starts = starts[table.elapsed[starts + last] <= recipe.max_elapsed]
        ids = table.instruction_ids[starts + last]
        kinds = torch.full_like(starts, -1)
        for kind, pattern in enumerate(recipe.recalls):
            matching = [bool(re.search(pattern, text)) for text in table.instructions]
            kinds[torch.tensor(matching, device=ids.device)[ids]] = kind
        starts, kinds = starts[kinds >= 0], kinds[kinds >= 0]
        values = torch.tensor(list(recipe.recalls.values()), device=starts.device)
        # A plan begins with its instruction; later contexts show where the robot is heading.
        earliness = 1 / (1 + table.elapsed[starts + last])
        numbers = self._chunks_before(starts)
        groups = {}
        for number in range(1, self._stage.max_chunks + 1):
            chosen = numbers == number
            if chosen.any():
                group, early = kinds[chosen], earliness[chosen]
                # A frequent kind does not drown a rare one.
                totals = torch.bincount(group, early, minlength=len(values))
                groups[number] = (starts[chosen], values[group] * early / totals[group])
        if not groups:
            raise SfvgenError(
                f"no instruction matches recalls ({', '.join(recipe.recalls)}) after 1 to "
                f"{self._stage.max_chunks} whole chunks of an episode; collect such episodes or "
                "change the recipe"
            )
        return groups

    def _chunks_before(self, starts: Tensor) -> Tensor:
        """How many whole chunks of their episode come before the windows' future frames."""
        last = starts + self._num_past - 1
        return (last - self._begins[last]) // self._num_future


def episode_begins(table: FrameTable) -> Tensor:
    """For each row the row of its episode's first frame, `(N,)`."""
    rows = torch.arange(len(table.remaining), device=table.remaining.device)
    is_first = torch.ones_like(rows, dtype=torch.bool)
    is_first[1:] = table.remaining[:-1] == 0
    return torch.where(is_first, rows, 0).cummax(0).values
