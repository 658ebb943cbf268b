"""Checks of an installation, each with a remedy."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "peft", "transformers", "gymnasium", "numpy", "zarr")
EXTRAS = {"mujoco": "envs", "av": "report", "jinja2": "report"}
MIN_FREE_GB = 2.0
_RENDERING_REMEDY = (
    "install a software renderer (Debian, Ubuntu: apt-get install -y libegl1 libgl1-mesa-dri "
    "libopengl0) and set MUJOCO_GL=egl"
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``remedy`` says what to do where it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(model: str) -> Iterator[Check]:
    """Yield one check after another, each as soon as it is done.

    Args:
        model: shipped name, checkpoint folder or Hub id to imagine one chunk with.
    """
    yield _python()
    for library in LIBRARIES:
        yield _library(library, "pip install --force-reinstall sfvgen-planner")
    for library, extra in EXTRAS.items():
        yield _library(library, f"pip install 'sfvgen-planner[{extra}]'")
    yield _attempt("device", _device, "reinstall torch")
    yield _attempt("rendering", _rendered_frame, _RENDERING_REMEDY)
    yield _attempt(
        "imagination",
        lambda: _imagined_chunk(model),
        "give a whole checkpoint with --model, or reinstall the package for the shipped one",
    )
    yield _disk(Path.cwd())


def _python() -> Check:
    return Check(
        "python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or newer"
    )


def _library(name: str, remedy: str) -> Check:
    try:
        importlib.import_module(name)
        return Check(name, True, version(name))
    except (ImportError, PackageNotFoundError, OSError) as error:
        return Check(name, False, _one_line(error), remedy)


def _attempt(name: str, check: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, True, check())
    except Exception as error:  # whatever is wrong is what the user wants to know
        return Check(name, False, _one_line(error), remedy)


def _device() -> str:
    import torch

    from sfvgen_planner.evaluation.provenance import machine

    return machine("cuda" if torch.cuda.is_available() else "cpu")


def _rendered_frame() -> str:
    from sfvgen_planner.data.camera import camera_frame
    from sfvgen_planner.data.environment import make_env
    from sfvgen_planner.evaluation.tabletop import ENV_ID

    env = make_env(ENV_ID)
    try:
        frame = camera_frame(env, env.reset(seed=0)[0])
    finally:
        env.close()
    if frame.std() == 0:
        raise RuntimeError("the rendered frame has one colour only")
    height, width = frame.shape[:2]
    return f"one {width}x{height} frame with MUJOCO_GL={os.environ.get('MUJOCO_GL', 'not set')}"


def _imagined_chunk(name: str) -> str:
    import numpy as np

    from sfvgen_planner.world_model import load_world_model

    model = load_world_model(name)
    size = model.config.image_size
    started = time.perf_counter()
    output = model(np.zeros((1, 1, size, size, 3), np.uint8), instruction="")
    if not bool(output.latents.isfinite().all()):
        raise RuntimeError(f"the model {name} imagines numbers that are not finite")
    seconds = time.perf_counter() - started
    return f"{model.config.num_future_frames} frames with the model {name} in {seconds:.1f} s"


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    remedy = f"free at least {MIN_FREE_GB:g} GB, or work in another folder"
    return Check("disk", free >= MIN_FREE_GB, f"{free:.1f} GB free in {folder}", remedy)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
