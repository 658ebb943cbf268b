"""`sfvgen demo`: a few planned episodes, memory on and off, with a report."""

import argparse
from pathlib import Path

from sfvgen_planner.errors import SfvgenError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="plan a few episodes with the shipped model and write a report",
        description="Plan TabletopReturn episodes with an imagined video, with the memory on and "
        "off on the same seeds. Writes summary.json, report.html, videos and a poster.",
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="default: runs/demo")
    parser.add_argument("--episodes", type=int, metavar="N", help="of each kind (default: 4)")
    parser.add_argument("--level", type=int, metavar="L", help="1 to 4 cubes (default: 1)")
    parser.add_argument(
        "--seed", type=int, metavar="S", help="of the first episode (default: 100000)"
    )
    parser.add_argument(
        "--model",
        default="tabletop_memory",
        metavar="NAME",
        help="shipped model, checkpoint folder or Hub id (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo and say where the report is."""
    try:
        from sfvgen_planner.evaluation.demo import DemoConfig, run_demo
        from sfvgen_planner.evaluation.report import finding
    except ModuleNotFoundError as error:
        raise SfvgenError(
            f"the demo needs {error.name}; pip install 'sfvgen-planner[envs,report]'"
        ) from error

    given = {"num_episodes": args.episodes, "level": args.level, "seed": args.seed}
    config = DemoConfig(
        Path(args.out), args.model, **{k: v for k, v in given.items() if v is not None}
    )
    summary = run_demo(config)
    print(finding(summary))
    print(f"{config.out / 'report.html'}: open it in a browser")
    return 0
