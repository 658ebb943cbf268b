"""A small head on the latents: is the instruction achieved, and what did the step earn?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sfvgen_planner.errors import require
from sfvgen_planner.world_model.latent_blocks import Reader, ResidualBlock, require_latents

if TYPE_CHECKING:
    from sfvgen_planner.world_model.pipeline import VideoWorldModel


class OutcomeHead(ModelMixin, ConfigMixin):
    """Convolutions over a frame's latents, each modulated by the instruction (FiLM).

    Success is read off one frame, so an instruction that refers to the past, such as "return the
    red cube", can't be judged beyond what the frame itself tells. The reward of a step is read off
    the frames before and after it. Latents are scaled as the world model's, instructions are its
    token ids. Saved and loaded as any diffusers model: `save_pretrained`, `from_pretrained`.

    Args:
        latent_channels: Channels of the autoencoder's latents.
        latent_side: Height and width of the latents.
        vocab_size: Tokens of the world model's tokenizer.
        hidden_size: Channels of the convolutions and width of the text's state.
        num_blocks: Modulated residual blocks.
        reward_scale: A typical size of the environment's rewards, in its units.
        temperature: What the success logits are divided by, fitted on held-out episodes.
        bias: What is then added to them (Platt scaling).
        success_ends: Whether success ends an episode, as it does in the environment.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        latent_side: int = 8,
        vocab_size: int = 1000,
        hidden_size: int = 96,
        num_blocks: int = 3,
        reward_scale: float = 1.0,
        temperature: float = 1.0,
        bias: float = 0.0,
        success_ends: bool = True,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, hidden_size)
        self.reader = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.stem = nn.Conv2d(latent_channels, hidden_size, kernel_size=3, padding=1)
        # "On the left" means a place in the picture, which convolutions alone do not know.
        self.places = nn.Parameter(torch.zeros(hidden_size, latent_side, latent_side))
        self.blocks = nn.ModuleList(
            ResidualBlock(hidden_size, reads_text=True) for _ in range(num_blocks)
        )
        self.success = Reader(hidden_size, 1)
        self.compare = nn.Conv2d(2 * hidden_size, hidden_size, kernel_size=3, padding=1)
        self.reward = Reader(hidden_size, 1)

    def forward(self, before: Tensor, after: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """What steps led to.

        Args:
            before: `(batch, channels, h, w)`, latents of the frames before the steps.
            after: Likewise, after them.
            token_ids: `(batch, tokens)` of the instructions in force during the steps.

        Returns:
            Calibrated log-odds `(batch,)` that the frames after show the instructions achieved,
            and the rewards `(batch,)` in the environment's units.
        """
        text = self._read(token_ids)
        earlier, later = self._look(torch.cat([before, after]), torch.cat([text, text])).chunk(2)
        return self._judge(later), self._value(earlier, later)

    def success_logits(self, latents: Tensor, token_ids: Tensor) -> Tensor:
        """Calibrated log-odds `(batch,)` that frames `(batch, channels, h, w)` show success."""
        return self._judge(self._look(latents, self._read(token_ids)))

    def tokenize(self, world_model: VideoWorldModel, instructions: list[str]) -> Tensor:
        """Token ids `(batch, tokens)` of instructions, on the CPU.

        Args:
            world_model: That the head was trained with.
            instructions: As the world model is told them.

        Raises:
            SfvgenError: The world model has another vocabulary.
        """
        known, told = self.config.vocab_size, len(world_model.tokenizer)
        require(
            known == told,
            f"this outcome head knows {known} tokens, but the world model has {told}: take the "
            "head of the same checkpoint as the model",
        )
        return world_model.tokenize(instructions)

    def _read(self, token_ids: Tensor) -> Tensor:
        text: Tensor = self.reader(self.tokens(token_ids))[1][0]
        return text

    def _look(self, latents: Tensor, text: Tensor) -> Tensor:
        shape = (self.config.latent_channels, *self.places.shape[1:])
        require_latents(latents, shape, "outcome head")
        features: Tensor = self.stem(latents) + self.places
        for block in self.blocks:
            features = block(features, text)
        return features

    def _judge(self, features: Tensor) -> Tensor:
        logits: Tensor = self.success(features)[:, 0]
        return logits / self.config.temperature + self.config.bias

    def _value(self, earlier: Tensor, later: Tensor) -> Tensor:
        pair = torch.cat([earlier, later - earlier], dim=1)
        rewards: Tensor = self.reward(nn.functional.silu(self.compare(pair)))[:, 0]
        return rewards * self.config.reward_scale
