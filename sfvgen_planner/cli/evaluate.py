"""`sfvgen eval`: measure figures and write them to a result file."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import NamedTuple


class _Evaluation(NamedTuple):
    module: str
    config: str
    help: str


_EVALUATIONS = {
    "main-job": _Evaluation(
        "main_job", "MainJobConfig", "single skills, action-conditioned video, expert, speed"
    ),
    "slow-learning": _Evaluation(
        "slow_learning",
        "SlowLearningConfig",
        "how true the world model is: actions, counterfactuals, language, outcome head",
    ),
    "speed": _Evaluation(
        "speed", "SpeedConfig", "imagined frames a second, seconds per plan, training"
    ),
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "eval",
        help="measure figures and write them to a result file",
        description="Measure figures on held-out seeds, each with a 95 % bootstrap interval.",
    )
    evaluations = parser.add_subparsers(dest="evaluation", metavar="EVALUATION", required=True)
    for name, evaluation in _EVALUATIONS.items():
        one = evaluations.add_parser(
            name,
            help=evaluation.help,
            description="Each part is written as soon as it is measured; rows already in the file "
            "are kept, or replaced where they are measured again.",
        )
        one.add_argument(
            "--out",
            default=f"results/{evaluation.module}.json",
            metavar="FILE",
            help="default: %(default)s",
        )
        one.add_argument(
            "--only", nargs="+", metavar="FIGURE", help="measure these figures (default: all)"
        )
        one.add_argument(
            "--model", default="tabletop", metavar="NAME", help="shipped model or checkpoint folder"
        )
        one.add_argument("--device", metavar="DEVICE", help="default: cuda where there is one")
        one.add_argument(
            "--episodes", type=int, metavar="N", help="of every part (default: as many as it needs)"
        )
        one.set_defaults(run=run, resumes=False)


def run(args: argparse.Namespace) -> int:
    """Measure, write and print the figures."""
    from sfvgen_planner.evaluation.measure import measure

    evaluation = _EVALUATIONS[args.evaluation]
    module = import_module(f"sfvgen_planner.evaluation.{evaluation.module}")
    config = getattr(module, evaluation.config).of(args.model, args.device, args.episodes)
    for figure in measure(Path(args.out), config, module.FIGURES, args.only):
        low, high = figure.ci95
        told = " ".join(f"{key}={value}" for key, value in figure.fields.items())
        print(f"{figure.name} {figure.value:.4g} {figure.unit} [{low:.4g}, {high:.4g}] {told}")
    return 0
