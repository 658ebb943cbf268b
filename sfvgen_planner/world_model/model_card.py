"""The README of a checkpoint folder, which the Hugging Face Hub shows as its model card."""

from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

_CARD = """\
---
library_name: diffusers
pipeline_tag: image-to-video
tags: [world-model, robotics, video-diffusion]
---

# Video world model{of}

Imagines {num_future_frames} frames of {image_size}x{image_size} from {num_past_frames} past ones, \
led by an instruction, by {action_size} action numbers, by both or by neither. One frame is \
{frame_skip} environment step{plural}.{data}

| Part | Parameters |
|---|---|
{parts}

```python
from sfvgen_planner.world_model import load_world_model

model = load_world_model("user/name")  # this repository's name, or the path of this folder
```
"""


def write_model_card(folder: Path, config: Any) -> None:
    """Write the `README.md` of a checkpoint folder, from what the folder holds.

    Args:
        folder: Holds a folder with safetensors for each part.
        config: Of the `VideoWorldModel` that was saved there.
    """
    parts = {part.name: _num_parameters(part) for part in sorted(folder.iterdir())}
    data = f" It was trained on {config.data_steps:,} steps of data." if config.data_steps else ""
    card = _CARD.format(
        of=f" of {config.env_id}" if config.env_id else "",
        num_future_frames=config.num_future_frames,
        image_size=config.image_size,
        num_past_frames=config.num_past_frames,
        action_size=len(config.action_low),
        frame_skip=config.frame_skip,
        plural="" if config.frame_skip == 1 else "s",
        data=data,
        parts="\n".join(f"| `{name}` | {count:,} |" for name, count in parts.items() if count),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _num_parameters(folder: Path) -> int:
    """Numbers in the safetensors of a folder."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count
