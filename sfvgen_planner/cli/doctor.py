"""`sfvgen doctor`: is everything here that planning needs?"""

import argparse


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="check the installation: versions, rendering, model, disk",
        description="Check what planning needs. Exit code 1 if anything is missing, with a remedy.",
    )
    parser.add_argument(
        "--model",
        default="tabletop",
        metavar="NAME",
        help="shipped model, checkpoint folder or Hub id (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line per check."""
    from sfvgen_planner.evaluation.doctor import examine

    healthy = True
    for check in examine(args.model):
        healthy = healthy and check.ok
        print(f"{'ok' if check.ok else 'FAIL':<5} {check.name}: {check.detail}", flush=True)
        if not check.ok:
            print(f"      remedy: {check.remedy}", flush=True)
    return 0 if healthy else 1
