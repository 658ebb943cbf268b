"""`sfvgen train`: slow learning from a recipe and an episode store."""

import argparse
from pathlib import Path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a world model from recorded episodes",
        description="Train the stages of a recipe one after another: autoencoder, world model, "
        "inverse dynamics, outcome head, temporal distance. The same command goes on after an "
        "interruption. Several processes: accelerate launch -m sfvgen_planner train ...",
    )
    add_recipe_arguments(parser, "world_model.prediction=epsilon")
    parser.add_argument(
        "--init-from",
        metavar="MODEL",
        help="shipped model, checkpoint folder or Hub id to go on from; the recipe's stages "
        "continue it",
    )
    parser.set_defaults(run=run, resumes=True)


def add_recipe_arguments(
    parser: argparse.ArgumentParser,
    example: str,
    out: str = "checkpoints; the model goes to DIR/model",
    has_data: bool = True,
) -> None:
    """Add what all commands that train from a recipe are given: recipe, changes, data, output.

    Args:
        parser: Of one command.
        example: Changes that make sense for the command's recipes.
        out: What the output folder will hold.
        has_data: Whether the episodes are there already.
    """
    parser.add_argument("--recipe", required=True, metavar="FILE", help="YAML recipe")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help=f"values to use instead of the recipe's, such as {example}",
    )
    if has_data:
        parser.add_argument(
            "--data", required=True, metavar="DIR", help="store of `sfvgen collect`"
        )
    parser.add_argument("--out", required=True, metavar="DIR", help=out)


def run(args: argparse.Namespace) -> int:
    """Train, or go on training."""
    from accelerate import PartialState

    from sfvgen_planner.world_model.recipe import Recipe
    from sfvgen_planner.world_model.shipped import checkpoint_folder
    from sfvgen_planner.world_model.training import train_recipe

    recipe = Recipe.load(Path(args.recipe), args.set)
    final = train_recipe(
        recipe,
        Path(args.data),
        Path(args.out),
        None if args.init_from is None else checkpoint_folder(args.init_from),
    )
    if PartialState().is_main_process:
        print(f"{final}: load it with VideoWorldModel.from_pretrained({str(final)!r})")
    return 0
