"""`sfvgen loop`: the slow-fast learning loop on a trained model."""

import argparse
from pathlib import Path

from sfvgen_planner.cli.train import add_recipe_arguments


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "loop",
        help="train a world model to use its memories",
        description="The slow-fast learning loop: write memories of recorded episodes, and train "
        "the model to imagine what comes later with them. The same command goes on after an "
        "interruption. Several processes: accelerate launch -m sfvgen_planner loop ...",
    )
    add_recipe_arguments(parser, "variant=paper memory={} stages.0.max_chunks=3")
    parser.add_argument(
        "--init-from",
        default="tabletop",
        metavar="MODEL",
        help="shipped model, checkpoint folder or Hub id (default: %(default)s)",
    )
    parser.set_defaults(run=run, resumes=True)


def run(args: argparse.Namespace) -> int:
    """Train, or go on training."""
    from accelerate import PartialState

    from sfvgen_planner.memory.loop import slow_fast_loop
    from sfvgen_planner.memory.loop_recipe import LoopRecipe
    from sfvgen_planner.world_model.shipped import checkpoint_folder

    recipe = LoopRecipe.load(Path(args.recipe), args.set)
    init_from = checkpoint_folder(args.init_from)
    final = slow_fast_loop(recipe, Path(args.data), Path(args.out), init_from)
    if PartialState().is_main_process:
        print(f"{final}: load it with VideoWorldModel.from_pretrained({str(final)!r})")
    return 0
