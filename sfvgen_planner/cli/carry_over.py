"""`sfvgen carry-over`: what a loop has taught one model, given to another."""

import argparse
from pathlib import Path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "carry-over",
        help="give a model what a loop has taught another",
        description="Add what a slow-fast loop changed in a model to the weights of another that "
        "has the same sizes and latents: ONTO + (LOOPED - BEFORE). The memory comes with it.",
    )
    model = "shipped model, checkpoint folder or Hub id"
    parser.add_argument("--looped", required=True, metavar="MODEL", help=f"the loop's end: {model}")
    parser.add_argument("--before", required=True, metavar="MODEL", help="where it had begun")
    parser.add_argument(
        "--onto",
        default="tabletop",
        metavar="MODEL",
        help="what is to have it (default: %(default)s)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new checkpoint folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the sum."""
    from sfvgen_planner.memory.carry_over import carry_over
    from sfvgen_planner.world_model.shipped import checkpoint_folder

    looped, before, onto = map(checkpoint_folder, (args.looped, args.before, args.onto))
    out = carry_over(looped, before, onto, Path(args.out))
    print(f"{out}: go on with sfvgen loop --init-from {out}")
    return 0
