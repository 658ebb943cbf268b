"""Which frames of an episode a chunk is imagined from: what others do instead of a memory."""

from collections.abc import Callable

import torch
from torch import Tensor

Context = Callable[[Tensor, Tensor, int, int], Tensor]
"""From the first and the present row of episodes `(batch,)`, the number of frames of a usual
context (f_p) and that of the longest episode so far to the rows of the context's frames, `(batch,
frames)`. Before an episode's first frame the world stood still."""


def recent_frames(begins: Tensor, present: Tensor, num_past: int, longest: int) -> Tensor:
    """The last f_p frames, as everywhere else."""
    return _last(num_past, begins, present)


def anchored_frames(begins: Tensor, present: Tensor, num_past: int, longest: int) -> Tensor:
    """The episode's first frame and the last f_p - 1 (StreamingT2V's idea, arXiv 2403.14773)."""
    return torch.cat([begins[:, None], _last(num_past - 1, begins, present)], dim=1)


def all_frames(begins: Tensor, present: Tensor, num_past: int, longest: int) -> Tensor:
    """Everything since the episode began: the upper bound that does not ask for the cost."""
    return _last(longest, begins, present)


def _last(count: int, begins: Tensor, present: Tensor) -> Tensor:
    rows = present[:, None] + torch.arange(1 - count, 1, device=present.device)
    return torch.maximum(rows, begins[:, None])


CONTEXTS: dict[str, Context] = {
    "recent": recent_frames,
    "anchor_frame": anchored_frames,
    "long_context": all_frames,
}
"""Name to context; the loop can train a model for each."""
