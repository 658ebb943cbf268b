"""The tabletop's MuJoCo model: the static scene of assets/tabletop.xml plus cubes and pads."""

from __future__ import annotations

from importlib import resources

from sfvgen_envs.rendering import RenderQuality  # first: it chooses the GL backend

import mujoco  # isort: skip

CUBE_HALF_EDGE = 0.021
"""Half the edge of a cube [m]."""
PAD_HALF_EDGE = 0.0375
"""Half the edge of a pad [m]."""
FINGER_STROKE = 0.037
"""Travel of one finger between closed (0) and open [m]."""

CUBE_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.10, 0.10),
    "green": (0.10, 0.80, 0.15),
    "blue": (0.10, 0.30, 1.00),
    "yellow": (1.00, 0.88, 0.05),
}
PAD_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.52, 0.30, 0.30),
    "green": (0.28, 0.44, 0.32),
    "blue": (0.28, 0.35, 0.54),
    "yellow": (0.58, 0.52, 0.30),
}


def build_model(num_cubes: int, num_pads: int, quality: RenderQuality = "fast") -> mujoco.MjModel:
    """Compile the scene with free cubes ``cube_<i>`` and movable, purely visual pads ``pad_<i>``.

    Their colours are the episode's choice: set ``model.geom("cube_<i>").rgba``. Pads are mocap
    bodies, so that their places belong to the simulator's state.
    """
    with resources.as_file(resources.files("sfvgen_envs") / "assets" / "tabletop.xml") as path:
        spec = mujoco.MjSpec.from_file(str(path))
    for index in range(num_pads):
        body = spec.worldbody.add_body(name=f"pad_{index}", mocap=True)
        body.add_geom(
            name=f"pad_{index}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[PAD_HALF_EDGE, PAD_HALF_EDGE, 0.0005],
            pos=[0, 0, 0.0005],
            contype=0,
            conaffinity=0,
        )
    for index in range(num_cubes):
        body = spec.worldbody.add_body(name=f"cube_{index}", pos=[0, 0, CUBE_HALF_EDGE])
        body.add_freejoint(name=f"cube_{index}")
        body.add_geom(
            name=f"cube_{index}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[CUBE_HALF_EDGE] * 3,
            mass=0.05,
            contype=3,
            conaffinity=3,
            friction=[1, 0.01, 0.0005],
            solref=[0.01, 1],
            condim=4,
        )
    if quality == "pretty":
        table = spec.geom("table")
        table.material, table.rgba = "table", [1, 1, 1, 1]
        for name in ("left_finger", "right_finger"):
            spec.geom(name).material = "metal"
    return spec.compile()
