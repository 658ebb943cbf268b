"""Gymnasium's vector format of infos: every array has a mask under the same name with ``_``."""

from __future__ import annotations

from typing import Any

import numpy as np


def masked_info(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``(N, ...)`` values where the ``(N,)`` mask holds; elsewhere zero, or None for objects."""
    info = np.full_like(values, None if values.dtype == object else 0)
    info[mask] = values[mask]
    return info


def env_info(infos: dict[str, Any], index: int) -> dict[str, Any]:
    """The infos of environment ``index`` alone.

    A dict within may do without masks of its own, as that of Gymnasium's RecordEpisodeStatistics.
    """
    return {
        key: env_info(values, index) if isinstance(values, dict) else _plain(values[index])
        for key, values in infos.items()
        if not key.startswith("_") and (f"_{key}" not in infos or infos[f"_{key}"][index])
    }


def _plain(value: Any) -> Any:
    """Gymnasium makes an array of ``bool``, but a list of objects of ``np.bool_``."""
    return bool(value) if isinstance(value, np.bool_) else value
