"""What one write of a memory did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryWrite:
    """What one write did.

    Attributes:
        loss_without: Denoising loss of the chunk under the slow weights alone.
        loss_before: The same noise's loss under the fast weights before the write.
        loss_after: The same noise's loss afterwards; lower means that it learnt.
        seconds: Wall-clock time of the write, of all memories that were written together.
    """

    loss_without: float
    loss_before: float
    loss_after: float
    seconds: float

    @property
    def losses(self) -> dict[str, float]:
        """The losses by name, without the time, which differs when an episode is played again."""
        return {
            "loss_without": self.loss_without,
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
        }
