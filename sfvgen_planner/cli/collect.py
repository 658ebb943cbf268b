"""`sfvgen collect`: record episodes of a policy in an environment."""

import argparse
import json
from typing import Any

from sfvgen_planner.errors import SfvgenError

_SOURCE_OPTIONS = ("policy", "episodes", "seed", "env_kwargs", "policy_kwargs")
_STORE_OPTIONS = ("frame_skip", "image_size")
"""Options that are keys of a recipe, of a source and of the whole."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "collect",
        help="record episodes of any policy in any Gymnasium environment with a camera",
        description="Record episodes into a store. The same command goes on after an interruption; "
        "with more episodes, or another policy, it adds to the store.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", metavar="FILE", help="YAML recipe with a section `data:`")
    what.add_argument("--env", metavar="ID", help="Gymnasium id, also module:id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the store")
    parser.add_argument(
        "--num-workers", type=int, default=1, metavar="N", help="processes (default: 1)"
    )
    single = parser.add_argument_group("with --env; a recipe says these itself")
    single.add_argument("--policy", metavar="NAME", help="name or module:Class (default: random)")
    single.add_argument("--episodes", type=int, metavar="N", help="default: 10")
    single.add_argument("--seed", type=int, metavar="S", help="of the first episode (default: 0)")
    single.add_argument("--env-kwargs", metavar="JSON", help="of gymnasium.make")
    single.add_argument("--policy-kwargs", metavar="JSON", help="of the policy")
    single.add_argument(
        "--frame-skip", type=int, metavar="K", help="environment steps per frame (default: 1)"
    )
    single.add_argument(
        "--image-size", type=int, metavar="N", help="height and width in pixels (default: camera's)"
    )
    parser.set_defaults(run=run, resumes=True)


def run(args: argparse.Namespace) -> int:
    """Collect what is missing."""
    from sfvgen_planner.data.collect import collect_recipe
    from sfvgen_planner.data.recipe import DataRecipe, validated

    given = {
        name: getattr(args, name)
        for name in (*_SOURCE_OPTIONS, *_STORE_OPTIONS)
        if getattr(args, name) is not None
    }
    if args.recipe is not None:
        for name in given:
            option = f"--{name.replace('_', '-')}"
            raise SfvgenError(f"{option} goes with --env; with --recipe, change it in the recipe")
        recipe = DataRecipe.load(args.recipe)
    else:
        for name in given.keys() & {"env_kwargs", "policy_kwargs"}:
            given[name] = json_object(given[name], f"--{name.replace('_', '-')}")
        source = {"env_id": args.env, "policy": "random", "episodes": 10}
        source |= {name: given[name] for name in given.keys() & _SOURCE_OPTIONS}
        values = {name: given[name] for name in given.keys() & _STORE_OPTIONS}
        recipe = validated(DataRecipe, {"sources": [source], **values}, "options")
    store = collect_recipe(recipe, args.out, args.num_workers)
    height, width = store.spec.image_size
    num_frames = sum(store.num_steps) + len(store)
    print(f"{args.out}: {len(store)} episodes, {num_frames} frames of {width}x{height}")
    return 0


def json_object(text: str, option: str) -> dict[str, Any]:
    """Read the value of an option that is a JSON object; an SfvgenError names the option."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SfvgenError(f"{option} must be JSON, such as '{{\"level\": 2}}': {error}") from error
    if not isinstance(value, dict):
        raise SfvgenError(f"{option} must be a JSON object, such as '{{\"level\": 2}}'")
    return value
