"""Environments of Gymnasium's MuJoCo renderer, several at a time."""

import gc

import numpy as np

from sfvgen_planner.data import make_env


def picture(env):
    env.reset(seed=0)
    return env.render().copy()


def test_environments_do_not_spoil_each_others_pictures():
    size = {"width": 48, "height": 48}
    first = make_env("Reacher-v5", size)
    alone = picture(first)
    assert alone.std() > 5
    for _ in range(2):
        other = make_env("Pusher-v5", size)
        foreign = picture(other)
        assert np.abs(foreign.astype(int) - alone).mean() > 5
        # In turns, after the other is closed, and after its buffers are collected.
        assert np.array_equal(picture(first), alone)
        assert np.array_equal(picture(other), foreign)
        other.close()
        assert np.array_equal(picture(first), alone)
        del other
        gc.collect()
        assert np.array_equal(picture(first), alone)
    first.close()
    first.close()
