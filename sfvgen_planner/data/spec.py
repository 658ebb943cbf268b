"""What all episodes of a store have in common."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from sfvgen_planner.data.episode import Episode
from sfvgen_planner.errors import SfvgenError


@dataclass(frozen=True)
class StoreSpec:
    """What is equal for all episodes of a store, so that one model can learn from them.

    Attributes:
        env_id: Gymnasium id.
        frame_skip: Environment steps per video frame; the action is held over them.
        image_size: (height, width) in pixels.
        action_low: Lower bound of each of the A action components, in the environment's units.
        action_high: Upper bounds.
        proprio_size: Number of proprioceptive values per frame, 0 where there are none.
    """

    env_id: str
    frame_skip: int
    image_size: tuple[int, int]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    proprio_size: int = 0

    @property
    def action_size(self) -> int:
        """A, the number of action components."""
        return len(self.action_low)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild a spec from `to_json`'s values."""
        names = [field.name for field in fields(cls)]
        kept = {name: values[name] for name in names}
        for name in ("image_size", "action_low", "action_high"):
            kept[name] = tuple(kept[name])
        return cls(**kept)

    def require_equal(self, other: Self, where: str) -> None:
        """Raise an SfvgenError that names the first field in which `other` differs."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                raise SfvgenError(
                    f"{where} holds episodes with {field.name} = {mine}, but {theirs} was asked "
                    "for; give another output folder, or the same settings"
                )

    def require_fits(self, episode: Episode) -> None:
        """Raise an SfvgenError where an episode has other sizes than the store, or odd numbers."""
        proprio_size = 0 if episode.proprio is None else episode.proprio.shape[1]
        pairs = {
            "image size": (episode.frames.shape[1:3], self.image_size),
            "action size": (episode.actions.shape[1], self.action_size),
            "proprio size": (proprio_size, self.proprio_size),
        }
        for name, (found, expected) in pairs.items():
            if found != expected:
                raise SfvgenError(
                    f"the episode has {name} {found}, but the store holds {name} {expected}"
                )
        low, high = (np.array(b, np.float32) for b in (self.action_low, self.action_high))
        # As far as single precision rounds.
        margin = 1e-4 * (high - low)
        if not ((episode.actions >= low - margin) & (episode.actions <= high + margin)).all():
            raise SfvgenError(
                f"the episode has actions that are not finite or outside of {low.tolist()} to "
                f"{high.tolist()}; clip them, or leave the episode out"
            )
        wrong = ~np.isfinite(episode.rewards)
        if wrong.any():
            step = int(wrong.argmax())
            raise SfvgenError(
                f"the episode of seed {episode.seed} has the reward {episode.rewards[step]} at "
                f"step {step}, but rewards must be finite; leave the episode out"
            )
