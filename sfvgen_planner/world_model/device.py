"""Devices that models can run on."""

import torch

from sfvgen_planner.errors import SfvgenError


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        SfvgenError: It is none, or nothing can be read from it.
    """
    try:
        # Of a device without memory of its own, such as meta, nothing can be read.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise SfvgenError(f"the device {device!r} cannot be used: {error}") from error
