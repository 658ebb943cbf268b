"""A small head on the latents: has the instruction been achieved in this frame?"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class SuccessHead(ModelMixin, ConfigMixin):
    """Convolutions over a frame's latents, each modulated by the instruction (FiLM).

    Saved and loaded as any diffusers model: `save_pretrained`, `from_pretrained`.

    Args:
        latent_channels: Channels of the autoencoder's latents.
        vocab_size: Tokens of the world model's tokenizer.
        hidden_size: Channels of the convolutions and width of the text's state.
        num_blocks: Modulated residual blocks.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        vocab_size: int = 1000,
        hidden_size: int = 96,
        num_blocks: int = 3,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, hidden_size)
        self.reader = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.stem = nn.Conv2d(latent_channels, hidden_size, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(_FilmBlock(hidden_size) for _ in range(num_blocks))
        self.score = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, 1)
        )

    def forward(self, latents: Tensor, token_ids: Tensor) -> Tensor:
        """Logits `(batch,)` of success.

        Args:
            latents: `(batch, channels, h, w)` of single frames, scaled as the world model's.
            token_ids: `(batch, tokens)` of the instructions.
        """
        text = self.reader(self.tokens(token_ids))[1][0]
        features = self.stem(latents)
        for block in self.blocks:
            features = block(features, text)
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        logits: Tensor = self.score(pooled)
        return logits[:, 0]


class _FilmBlock(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)
        self.look = nn.Conv2d(hidden_size, hidden_size, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(8, hidden_size, affine=False)
        self.film = nn.Linear(hidden_size, 2 * hidden_size)

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        mixed = nn.functional.silu(self.mix(features))
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        return mixed + nn.functional.silu((1 + scale) * self.norm(self.look(mixed)) + shift)
