"""Random numbers of PyTorch from a seed."""

import numpy as np
import torch

from sfvgen_planner.errors import check_seed

# What PyTorch itself takes.
_MAX_SEED = 2**64 - 1


def seeded_generator(seed: int | None) -> torch.Generator:
    """A generator on the CPU; without a seed, every one differs.

    Raises:
        SfvgenError: The seed is no whole number of at least 0.
    """
    check_seed(seed)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    if seed > _MAX_SEED:
        # Such as the entropy that NumPy seeds itself with.
        (seed,) = np.random.SeedSequence(int(seed)).generate_state(1, np.uint64)
    return generator.manual_seed(int(seed))
