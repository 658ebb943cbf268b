"""Pictures and mp4 videos of imagined beside real frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfvgen_planner.files import replacing
from sfvgen_planner.planning.policy import PlanRecord

PANEL_SIZE = 256
_GAP = 8
_CAPTION_HEIGHT = 48
_INK, _PAPER, _FAINT = (30, 30, 30), (255, 255, 255), (120, 120, 120)


def imagined_frames(frames: np.ndarray, plans: Sequence[PlanRecord]) -> np.ndarray:
    """What the plans in force imagined for each moment of an episode.

    Args:
        frames: the real frames ``(T + 1, H, W, 3)`` uint8.
        plans: the episode's plans in the order they were made.

    Returns:
        Same shape: entry t is the frame that the plan in force imagined for moment t; the first
        entry, which nobody imagined, is the real one.
    """
    imagined = frames.copy()
    for record in plans:
        following = imagined[record.step + 1 :]
        length = min(len(following), len(record.plan))
        following[:length] = record.plan.frames[:length]
    return imagined


def side_by_side(imagined: np.ndarray, real: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """A video with imagined frames on the left, real ones on the right and the instruction above.

    Args:
        imagined: ``(T, H, W, 3)`` uint8.
        real: same shape.
        captions: T lines, one per frame.

    Returns:
        ``(T, height, width, 3)`` uint8 with even height and width.
    """
    panels = np.stack([_enlarged(imagined), _enlarged(real)], axis=1)
    return np.stack([_page(pair, caption) for pair, caption in zip(panels, captions, strict=True)])


def write_mp4(path: Path, frames: np.ndarray, fps: int = 5) -> None:
    """Write an H.264 video (yuv420p, which browsers play).

    Args:
        path: the file; it appears once it is complete.
        frames: ``(T, height, width, 3)`` uint8 with even height and width.
        fps: frames per second.
    """
    height, width = frames.shape[1:3]
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write_film_strip(
    path: Path, imagined: np.ndarray, real: np.ndarray, captions: Sequence[str], columns: int = 8
) -> None:
    """Write a PNG with moments of an episode from left to right, imagined above real.

    Args:
        path: the file.
        imagined: ``(T, H, W, 3)`` uint8.
        real: same shape.
        captions: T lines; each is written above the first moment shown that has it.
        columns: moments shown, spread evenly.
    """
    moments = np.linspace(1, len(real) - 1, min(columns, len(real) - 1)).round().astype(int)
    size = PANEL_SIZE // 2
    left, top = 76, 30
    width = left + len(moments) * (size + _GAP)
    page = Image.new("RGB", (width, top + 2 * (size + _GAP)), _PAPER)
    draw = ImageDraw.Draw(page)
    for row, (name, frames) in enumerate((("imagined", imagined), ("real", real))):
        y = top + row * (size + _GAP)
        draw.text((4, y + size // 2 - 8), name, fill=_INK, font=ImageFont.load_default(15))
        for column, moment in enumerate(moments):
            picture = Image.fromarray(_enlarged(frames[moment : moment + 1], size)[0])
            page.paste(picture, (left + column * (size + _GAP), y))
    font = ImageFont.load_default(15)
    previous = None
    for column, moment in enumerate(moments):
        if captions[moment] != previous:
            text_width = int(font.getlength(captions[moment]))
            x = max(0, min(left + column * (size + _GAP), width - text_width - 4))
            draw.rectangle((x - 8, 0, width, top - 1), fill=_PAPER)
            draw.text((x, 6), captions[moment], fill=_INK, font=font)
        previous = captions[moment]
    with replacing(path) as temporary:
        page.save(temporary, optimize=True)


def _enlarged(frames: np.ndarray, size: int = PANEL_SIZE) -> np.ndarray:
    """Frames enlarged to about ``size`` pixels by repeating pixels, which invents nothing."""
    factor = max(1, size // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _page(pair: np.ndarray, caption: str) -> np.ndarray:
    height, width = pair.shape[1:3]
    page_size = (2 * width + _GAP, height + _CAPTION_HEIGHT)
    page = Image.new("RGB", tuple(extent + extent % 2 for extent in page_size), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((4, 3), caption, fill=_INK, font=ImageFont.load_default(17))
    for index, name in enumerate(("imagined", "real")):
        x = index * (width + _GAP)
        draw.text((x + 4, 28), name, fill=_FAINT, font=ImageFont.load_default(13))
        page.paste(Image.fromarray(pair[index]), (x, _CAPTION_HEIGHT))
    return np.asarray(page)
