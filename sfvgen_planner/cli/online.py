"""`sfvgen online`: the slow-fast learning loop in a live environment."""

import argparse
from pathlib import Path

from sfvgen_planner.cli.collect import json_object
from sfvgen_planner.cli.train import add_recipe_arguments


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "online",
        help="act in an environment, remember, and consolidate every N episodes",
        description="The slow-fast learning loop in a live environment: each round plays episodes "
        "under the present model, whose memory learns them as they happen, and then trains the "
        "model on all episodes so far. The same command goes on after an interruption; with more "
        "rounds, it goes on from the last.",
    )
    add_recipe_arguments(
        parser,
        "stages.0.optimisation.steps=100",
        "episodes in DIR/data, the model of each round in DIR/round_K/model",
        has_data=False,
    )
    parser.add_argument("--env", required=True, metavar="ID", help="Gymnasium id, also module:id")
    parser.add_argument(
        "--policy",
        default="planner",
        metavar="NAME",
        help="name, module:Class, or planner, which plans with the present model and its memory "
        "(default)",
    )
    parser.add_argument(
        "--episodes", type=int, default=20, metavar="N", help="of each round (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="K", help="in all (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the first episode (default: 0)"
    )
    parser.add_argument("--env-kwargs", default="{}", metavar="JSON", help="of gymnasium.make")
    parser.add_argument("--policy-kwargs", default="{}", metavar="JSON", help="of the policy")
    parser.add_argument(
        "--init-from",
        default="tabletop_memory",
        metavar="MODEL",
        help="shipped model, checkpoint folder or Hub id with a memory (default: %(default)s)",
    )
    parser.set_defaults(run=run, resumes=True)


def run(args: argparse.Namespace) -> int:
    """Play and train, or go on."""
    from sfvgen_planner.data.recipe import DataSource, validated
    from sfvgen_planner.memory.loop_recipe import LoopRecipe
    from sfvgen_planner.planning.online import online_loop
    from sfvgen_planner.world_model.shipped import checkpoint_folder

    recipe = LoopRecipe.load(Path(args.recipe), args.set)
    source = {
        "env_id": args.env,
        "policy": args.policy,
        "episodes": args.episodes,
        "seed": args.seed,
        "env_kwargs": json_object(args.env_kwargs, "--env-kwargs"),
        "policy_kwargs": json_object(args.policy_kwargs, "--policy-kwargs"),
    }
    final = online_loop(
        recipe,
        validated(DataSource, source, "options"),
        args.rounds,
        Path(args.out),
        checkpoint_folder(args.init_from),
    )
    print(f"{final}: load it with VideoWorldModel.from_pretrained({str(final)!r})")
    return 0
