"""`sfvgen eval`: measure figures and write them to a result file."""

import argparse
from pathlib import Path


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "eval",
        help="measure figures and write them to a result file",
        description="Measure figures on held-out seeds, each with a 95 % bootstrap interval.",
    )
    evaluations = parser.add_subparsers(dest="evaluation", metavar="EVALUATION", required=True)
    main_job = evaluations.add_parser(
        "main-job",
        help="single skills, action-conditioned video, expert, speed",
        description="Each part is written as soon as it is measured; rows already in the file "
        "are kept, or replaced where they are measured again.",
    )
    main_job.add_argument(
        "--out", default="results/main_job.json", metavar="FILE", help="default: %(default)s"
    )
    main_job.add_argument(
        "--only", nargs="+", metavar="FIGURE", help="measure these figures (default: all)"
    )
    main_job.add_argument(
        "--model", default="tabletop", metavar="NAME", help="shipped model or checkpoint folder"
    )
    main_job.add_argument("--device", metavar="DEVICE", help="default: cuda where there is one")
    main_job.add_argument(
        "--episodes", type=int, metavar="N", help="of every part (default: as many as it needs)"
    )
    main_job.set_defaults(run=run_main_job, resumes=False)


def run_main_job(args: argparse.Namespace) -> int:
    """Measure, write and print the figures."""
    from sfvgen_planner.evaluation import main_job

    config = main_job.MainJobConfig.of(args.model, args.device, args.episodes)
    for figure in main_job.run_main_job(Path(args.out), config, args.only):
        low, high = figure.ci95
        told = " ".join(f"{key}={value}" for key, value in figure.fields.items())
        print(f"{figure.name} {figure.value:.4g} {figure.unit} [{low:.4g}, {high:.4g}] {told}")
    return 0
