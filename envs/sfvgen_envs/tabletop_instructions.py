"""Which instructions an episode of the tabletop consists of, and how they are worded.

An episode's layout and all its instructions are drawn at reset, from the seed alone, so the same
seed asks every policy the same things. A move goes to the centre of a pad or to a free place drawn
inside a named region of the table; a recall asks for a cube's first or previous place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from sfvgen_envs.tabletop_scene import CUBE_COLOURS, CUBE_HALF_EDGE, PAD_COLOURS, PAD_HALF_EDGE

Recall = Literal["none", "first", "previous"]
RECALLS: tuple[str, ...] = get_args(Recall)
LEAST_MOVES: dict[Recall, int] = {"none": 1, "first": 1, "previous": 2}
"""Moves that an episode needs before its recall."""
MOST_MOVES = 8

PLACE_HALF_EXTENT = np.array([0.19, 0.15])
"""Cubes start and are asked to stand within this distance of the table's centre, per axis [m]."""
MIN_CUBE_DISTANCE = 0.10
"""Least distance between the centres of two cubes, and of a new place from older ones [m]."""
NUM_PADS = 3


@dataclass(frozen=True)
class Region:
    """An axis-aligned part of the table, ``low <= (x, y) <= high`` in metres."""

    low: tuple[float, float]
    high: tuple[float, float]

    def distance(self, xy: np.ndarray) -> float:
        """Distance [m] from a point to the region, 0 inside."""
        return float(np.linalg.norm(xy - np.clip(xy, self.low, self.high)))


_FAR = 1.0
_LEFT, _RIGHT = (-_FAR, -0.075), (0.075, _FAR)
_FRONT, _BACK = (-_FAR, -0.055), (0.055, _FAR)
_ALL = (-_FAR, _FAR)


def _region(x: tuple[float, float], y: tuple[float, float]) -> Region:
    return Region((x[0], y[0]), (x[1], y[1]))


REGIONS: dict[str, Region] = {
    "left": _region(_LEFT, _ALL),
    "right": _region(_RIGHT, _ALL),
    "front": _region(_ALL, _FRONT),
    "back": _region(_ALL, _BACK),
    "middle": _region((-0.075, 0.075), (-0.055, 0.055)),
    "front left corner": _region(_LEFT, _FRONT),
    "front right corner": _region(_RIGHT, _FRONT),
    "back left corner": _region(_LEFT, _BACK),
    "back right corner": _region(_RIGHT, _BACK),
}


@dataclass(frozen=True)
class Instruction:
    """One thing to do.

    Attributes:
        kind: ``"pad"`` and ``"region"`` are moves, ``"first"`` and ``"previous"`` are recalls.
        cube: colour of the cube to move.
        place: colour of the pad or name of the region; empty for recalls.
        target_xy: where the cube should stand [m]: the pad's centre, the place drawn inside the
            region, or the recalled place as planned. (For ``"previous"`` the environment uses the
            place where the cube really stood.)
    """

    kind: Literal["pad", "region", "first", "previous"]
    cube: str
    place: str
    target_xy: tuple[float, float]

    @property
    def text(self) -> str:
        """The instruction in words."""
        match self.kind:
            case "pad":
                return f"put the {self.cube} cube on the {self.place} pad"
            case "region":
                preposition = "in" if self.place == "middle" or "corner" in self.place else "to"
                verb = "put" if preposition == "in" else "move"
                return f"{verb} the {self.cube} cube {preposition} the {self.place}"
            case "first":
                return f"return the {self.cube} cube"
            case "previous":
                return f"put the {self.cube} cube back where it was before"

    def distance(self, xy: np.ndarray, target_xy: np.ndarray) -> float:
        """Distance [m] of a cube at ``xy`` from what is asked: a region, or else ``target_xy``."""
        if self.kind == "region":
            return REGIONS[self.place].distance(xy)
        return float(np.linalg.norm(xy - target_xy))


@dataclass(frozen=True)
class EpisodePlan:
    """Where everything starts and what is asked, all drawn from one seed. Places are (2,) [m]."""

    cubes: dict[str, np.ndarray]
    pads: dict[str, np.ndarray]
    instructions: tuple[Instruction, ...]


def instruction_texts() -> Iterator[str]:
    """Every sentence the grammar can produce."""
    nowhere = (0.0, 0.0)
    for cube in CUBE_COLOURS:
        for pad in PAD_COLOURS:
            yield Instruction("pad", cube, pad, nowhere).text
        for region in REGIONS:
            yield Instruction("region", cube, region, nowhere).text
        yield Instruction("first", cube, "", nowhere).text
        yield Instruction("previous", cube, "", nowhere).text


def draw_episode(
    rng: np.random.Generator,
    num_cubes: int,
    num_moves: int,
    recall: Recall,
    num_moves_before: int | None = 0,
) -> EpisodePlan:
    """Draw a layout and its instructions.

    With a recall, the recalled cube makes the first move after ``num_moves_before`` moves of other
    cubes. ``"first"``: later moves choose any cube, the recalled one included. ``"previous"``: the
    recalled cube moves exactly once more (every time if it is the only cube), so its first,
    previous and last place all differ. With None, how many moves follow the one that leaves the
    place asked for is drawn evenly, and then, for ``"previous"``, how many others come before.
    """
    if num_moves_before is None:
        most = most_moves_before(num_cubes, num_moves, recall)
        free = most - int(rng.integers(most + 1))
        before = free if recall == "first" else int(rng.integers(free + 1))
        order = _Order(before, free - before)
    else:
        order = _Order(num_moves_before)
    while True:  # a layout can leave no room for a move; then a new one is drawn
        plan = _try_episode(rng, num_cubes, num_moves, recall, order)
        if plan is not None:
            return plan


def most_moves_before(num_cubes: int, num_moves: int, recall: Recall) -> int:
    """How many of the moves can be made by other cubes before the recalled one first moves."""
    if recall == "none" or num_cubes == 1:
        return 0
    return num_moves - LEAST_MOVES[recall]


class _Order(NamedTuple):
    """When the recalled cube moves.

    Attributes:
        before: moves of other cubes before its first.
        between: moves of other cubes between its two, for ``"previous"``; None if to be drawn.
    """

    before: int
    between: int | None = None


def _try_episode(
    rng: np.random.Generator, num_cubes: int, num_moves: int, recall: Recall, order: _Order
) -> EpisodePlan | None:
    colours = [str(c) for c in rng.permutation(list(CUBE_COLOURS))[:num_cubes]]
    layout = _draw_layout(rng, colours)
    if layout is None:
        return None
    cubes, pads = layout
    places = {colour: [xy] for colour, xy in cubes.items()}
    instructions = []
    for colour in _draw_movers(rng, colours, num_moves, recall, order):
        kept_free = [history[-1] for history in places.values()]
        kept_free.append(places[colour][0])  # or its first place would not differ from a later one
        recalled = places[colours[0]]
        if recall == "first":
            kept_free.append(recalled[0])
        elif recall == "previous" and len(recalled) > 1:
            kept_free.append(recalled[-2])
        only_pads = recall == "none" and num_moves == 1
        move = _draw_move(rng, colour, places[colour][-1], kept_free, pads, only_pads)
        if move is None:
            return None
        places[colour].append(np.array(move.target_xy))
        instructions.append(move)
    if recall != "none":
        xy = places[colours[0]][0 if recall == "first" else -2]
        instructions.append(Instruction(recall, colours[0], "", (float(xy[0]), float(xy[1]))))
    return EpisodePlan(cubes, pads, tuple(instructions))


def _draw_layout(
    rng: np.random.Generator, colours: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    pads: dict[str, np.ndarray] = {}
    cubes: dict[str, np.ndarray] = {}
    for colour in rng.permutation(list(PAD_COLOURS))[:NUM_PADS]:
        others = list(pads.values())
        xy = _draw_place(rng, others, clear_of=others, margin=2 * PAD_HALF_EDGE + 0.005)
        if xy is None:
            return None
        pads[str(colour)] = xy
    for colour in colours:
        margin = PAD_HALF_EDGE + CUBE_HALF_EDGE + 0.005
        xy = _draw_place(rng, list(cubes.values()), clear_of=list(pads.values()), margin=margin)
        if xy is None:
            return None
        cubes[colour] = xy
    return cubes, pads


def _draw_place(
    rng: np.random.Generator,
    apart_from: list[np.ndarray],
    clear_of: list[np.ndarray] | None = None,
    margin: float = 0.0,
    region: Region | None = None,
    num_tries: int = 50,
) -> np.ndarray | None:
    """Draw a place ``MIN_CUBE_DISTANCE`` from some places and clear of axis-aligned squares."""
    inset = 0.02  # a cube that misses its place by the tolerance is still inside the region
    low, high = -PLACE_HALF_EXTENT, PLACE_HALF_EXTENT
    if region is not None:
        low = np.maximum(low, np.array(region.low) + inset)
        high = np.minimum(high, np.array(region.high) - inset)
    for _ in range(num_tries):
        xy = rng.uniform(low, high)
        if all(np.linalg.norm(xy - other) >= MIN_CUBE_DISTANCE for other in apart_from) and all(
            np.abs(xy - other).max() >= margin for other in clear_of or []
        ):
            return xy
    return None


def _draw_movers(
    rng: np.random.Generator, colours: list[str], num_moves: int, recall: Recall, order: _Order
) -> list[str]:
    def draw(among: list[str], number: int) -> list[str]:
        return [str(colour) for colour in rng.choice(among, number)]

    if recall == "none":
        return draw(colours, num_moves)
    target, others = colours[0], colours[1:]
    before = draw(others, order.before)
    num_later = num_moves - order.before - 1
    if recall == "first" or not others:
        return [*before, target, *draw(colours, num_later)]
    later = draw(others, num_later)
    between = int(rng.integers(num_later)) if order.between is None else order.between
    later[between] = target
    return [*before, target, *later]


def _draw_move(
    rng: np.random.Generator,
    colour: str,
    present: np.ndarray,
    kept_free: list[np.ndarray],
    pads: dict[str, np.ndarray],
    only_pads: bool,
) -> Instruction | None:
    """Draw a move of one cube to a free pad or into a region it is not in."""
    free_pads = [
        (name, xy)
        for name, xy in pads.items()
        if all(np.linalg.norm(xy - other) >= MIN_CUBE_DISTANCE for other in kept_free)
    ]
    if free_pads and (only_pads or rng.random() < 0.5):
        name, xy = free_pads[int(rng.integers(len(free_pads)))]
        return Instruction("pad", colour, name, (float(xy[0]), float(xy[1])))
    if only_pads:
        return None
    for name in (str(n) for n in rng.permutation(list(REGIONS))):
        if REGIONS[name].distance(present) > 0.0:
            place = _draw_place(rng, kept_free, region=REGIONS[name])
            if place is not None:
                return Instruction("region", colour, name, (float(place[0]), float(place[1])))
    return None
