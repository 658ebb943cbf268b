"""What a write learns from: chunks beside their past, with conditions and noise."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sfvgen_planner.errors import require
from sfvgen_planner.memory.config import MemoryConfig
from sfvgen_planner.world_model import VideoWorldModel
from sfvgen_planner.world_model.objective import draw_timesteps
from sfvgen_planner.world_model.pixels import check_latents
from sfvgen_planner.world_model.slow_learning import SlowBatch


def check_array(chunk: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """The chunk itself, or a batch of them.

    Raises:
        SfvgenError: It is neither a NumPy array nor a tensor.
    """
    require(
        isinstance(chunk, np.ndarray | Tensor),
        f"a chunk must be a NumPy array or a tensor, got a {type(chunk).__name__}; np.stack makes "
        "an array of frames",
    )
    return chunk


class WriteBatches:
    """Makes the batches of writes, of one sample for each memory and noise draw, in this order.

    Args:
        world_model: The model whose memories write.
        config: How they learn.
    """

    def __init__(self, world_model: VideoWorldModel, config: MemoryConfig) -> None:
        self._world_model = world_model
        self._config = config

    @property
    def num_past_frames(self) -> int:
        """Frames before a chunk in its window: the model's f_p, unless set shorter."""
        num_past: int = self._world_model.config.num_past_frames
        return min(num_past, self._config.max_past_frames or num_past)

    def windows(
        self, previous_chunks: np.ndarray | Tensor, chunks: np.ndarray | Tensor, count: int
    ) -> Tensor:
        """Latents `(memories, channels, f_p + frames, h, w)` of the chunks and their past.

        Args:
            previous_chunks: X_i, uint8 `(memories, frames, H, W, 3)` or latents
                `(memories, channels, frames, h, w)`.
            chunks: Y_i, in the same form.
            count: How many memories are written.

        Raises:
            SfvgenError: An argument has the wrong type, shape or size, or is not finite.
        """
        past, future = self._latents(previous_chunks), self._latents(chunks)
        require(
            len(past) == len(future) == count,
            f"{count} memories need as many chunks, got {len(past)} previous ones and "
            f"{len(future)}",
        )
        windows = torch.cat([self._whole_past(past), future], dim=2)
        require(
            bool(windows.isfinite().all()),
            "a chunk or its past has numbers that are not finite, so it is not learnt; what the "
            "memories held is kept",
        )
        return windows

    def without_noise(
        self,
        windows: Tensor,
        instructions: Sequence[str] | None,
        actions: np.ndarray | Tensor | None,
    ) -> SlowBatch:
        """The windows with their conditions, and noise still to be drawn.

        Args:
            windows: As `windows` gives them.
            instructions: One each, for a `conditioned` memory; others learn without any.
            actions: `(memories, frames of the chunk, A)` in the environment's units, likewise.

        Raises:
            SfvgenError: There are not as many instructions, or the actions have another shape.
        """
        model, count, num_past = self._world_model, len(windows), self.num_past_frames
        texts, given = [""] * count, 0.0
        shape = (count, windows.shape[2] - num_past, model.action_size)
        normalised = windows.new_zeros(shape)
        if self._config.conditioned:
            texts = [text or "" for text in instructions or texts]
            require(len(texts) == count, f"{count} chunks need as many instructions")
            if actions is not None:
                normalised, given = model.normalise_actions(actions).to(windows.dtype), 1.0
                require(
                    normalised.shape == shape,
                    f"actions must have the shape {shape}, got {tuple(normalised.shape)}",
                )
        ones = windows.new_ones(count * self._config.num_noise_draws)
        return SlowBatch(
            latents=self._repeated(windows),
            num_past=num_past,
            actions=self._repeated(normalised),
            token_ids=self._repeated(model.tokenize(texts).to(windows.device)),
            actions_given=given * ones,
            context_given=float(self._config.conditioned) * ones,
            noise=self._repeated(windows),
            context_noise=windows.new_zeros(()),
            timesteps=ones,
        )

    def steps(
        self,
        template: SlowBatch,
        seeds: Sequence[int],
        histories: Sequence[Sequence[Tensor]] | None,
    ) -> list[SlowBatch]:
        """One batch per step, with the noise that each memory draws by itself.

        Args:
            template: As `without_noise` gives it.
            seeds: Of each memory's noise.
            histories: Windows `(channels, f_p + frames, h, w)` of which each memory's steps learn
                one at random; by default they learn that of the template.

        Raises:
            SfvgenError: The windows of a history differ in length.
        """
        draws, steps = self._config.num_noise_draws, self._config.num_steps
        shape = template.latents.shape[1:]
        latents, uniforms, noises = [], [], []
        for place, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            uniforms.append(torch.rand(steps, draws, generator=generator))
            noises.append(torch.randn(steps, draws, *shape, generator=generator))
            if histories is None:
                latents.append(template.latents[place * draws].expand(steps, *shape))
            else:
                history = histories[place]
                lengths = sorted({window.shape[1] - self.num_past_frames for window in history})
                require(
                    len(lengths) == 1,
                    "a memory with whole_history learns earlier chunks beside the new one, so all "
                    f"of an episode must have as many frames, got {lengths[0]} and {lengths[-1]}",
                )
                chosen = torch.randint(len(history), (steps,), generator=generator)
                latents.append(torch.stack([history[i] for i in chosen.tolist()]))
        # (memories, steps, ...) to one tensor for each step.
        # Not in half precision, of whose numbers few are between the lowest noise and 1.
        uniform = torch.stack(uniforms).transpose(0, 1).flatten(1, 2).to(template.latents.device)
        noise = torch.stack(noises).transpose(0, 1).flatten(1, 2).to(template.latents)
        clean = torch.stack(latents).transpose(0, 1).to(template.latents)
        scheduler = self._world_model.scheduler
        return [
            template._replace(
                latents=self._repeated(clean[step]),
                noise=noise[step],
                timesteps=draw_timesteps(scheduler, uniform[step], self._config.min_noise),
            )
            for step in range(steps)
        ]

    def _latents(self, chunks: np.ndarray | Tensor) -> Tensor:
        unet = self._world_model.unet
        check_array(chunks)
        if isinstance(chunks, Tensor) and chunks.is_floating_point():
            # A copy, because those of inference mode take no part in gradients.
            check_latents(chunks, self._world_model.latent_size)
            return chunks.clone().to(unet.device, unet.dtype)
        return self._world_model.encode(chunks).to(unet.dtype)

    def _whole_past(self, past: Tensor) -> Tensor:
        """Exactly f_p frames: the world stood still before an episode's first one."""
        past = past[:, :, -self.num_past_frames :]
        still = past[:, :, :1].expand(-1, -1, self.num_past_frames - past.shape[2], -1, -1)
        return torch.cat([still, past], dim=2)

    def _repeated(self, values: Tensor) -> Tensor:
        """One copy for each noise draw."""
        return values.repeat_interleave(self._config.num_noise_draws, dim=0)
