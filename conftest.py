"""Settings that have to be made before a test imports torch or MuJoCo."""

import os

# Tests run in several processes; more threads than cores make them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")
