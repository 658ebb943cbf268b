"""`sfvgen eval`: measure figures and write them to a result file."""

import argparse
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from sfvgen_planner.cli.collect import json_object
from sfvgen_planner.errors import require


class _Evaluation(NamedTuple):
    module: str
    config: str
    help: str
    plot: tuple[str, str, str] | None = None
    """Module and function that draw the result file, and what they draw."""
    is_spread: bool = False
    """Whether its episodes can be played in several processes."""


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
    "memory": _Evaluation(
        "memory",
        "MemoryConfig",
        "cubes that are asked back, with and without a memory; its cost",
        plot=("memory_plot", "plot_error_against_horizon", "error against horizon"),
        is_spread=True,
    ),
    "policy": _Evaluation(
        "policy_evaluation",
        "PolicyEvaluationConfig",
        "whether policies of different quality do as well in imagination as in the simulator",
        plot=("policy_plot", "plot_success_rates", "imagined against simulated success"),
    ),
    "policy-learning": _Evaluation(
        "policy_learning",
        "PolicyLearningConfig",
        "policies trained in imagination alone against policies trained in the simulator",
    ),
    "planning": _Evaluation(
        "planning",
        "PlanningConfig",
        "planners against expert and random, memory on and off",
        is_spread=True,
    ),
    "goal-planning": _Evaluation(
        "goal_planning",
        "GoalPlanningConfig",
        "planning in any environment, against its expert and random",
        is_spread=True,
    ),
}


_SETTINGS = (
    "num_workers",
    "num_envs",
    "variants",
    "recalls",
    "horizons",
    "num_moves_before",
    "num_noise_draws",
    "no_loop_model",
    "base_model",
    "sb3",
    "planners",
    "methods",
    "levels",
    "num_candidates",
    "num_videos",
    "trained_in",
    "algorithm",
    "num_training_seeds",
    "num_start_steps",
    "start_policy",
    "start_data",
    "num_imagined_steps",
    "horizon",
    "simulator_budgets",
    "num_worlds",
    "num_simulators",
    "model_steps",
)
"""Options that are settings of the same names."""


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
            description="Each figure is written as soon as it is measured; rows already in the "
            "file are kept, or replaced where they are measured again.",
        )
        one.add_argument(
            "--out",
            default=f"results/{evaluation.module}.json",
            metavar="FILE",
            help="default: %(default)s",
        )
        one.add_argument(
            "--only",
            action="extend",
            nargs="+",
            metavar="FIGURE",
            help="measure these figures (default: all)",
        )
        one.add_argument(
            "--model",
            default="tabletop",
            metavar="NAME",
            help="shipped model, checkpoint folder or Hub id (default: %(default)s)",
        )
        one.add_argument("--device", metavar="DEVICE", help="default: cuda where there is one")
        one.add_argument(
            "--episodes",
            type=int,
            metavar="N",
            help="of every part, and at most so many repetitions of a timing (default: as many "
            "as it needs)",
        )
        if evaluation.plot is not None:
            one.add_argument(
                "--plot",
                metavar="FILE",
                help=f"draw {evaluation.plot[-1]} from the whole result file",
            )
        if evaluation.is_spread:
            _add_num_workers(one, "play the episodes")
            one.add_argument(
                "--num-envs",
                type=int,
                metavar="N",
                help="episodes that each process plays side by side, where they are planned in the "
                "world model, with batched calls for all of them (default: 1; 64 suits a GPU)",
            )
        if name == "memory":
            _add_memory_options(one)
        if name == "policy":
            _add_policy_options(one)
        if name == "policy-learning":
            _add_policy_learning_options(one)
        if name == "planning":
            _add_planning_options(one)
        if name == "goal-planning":
            _add_goal_planning_options(one)
        one.set_defaults(run=run, resumes=False)


def _add_num_workers(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help=f"processes that {what}, each with a model of its own (default: 1)",
    )


def _add_memory_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variants",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="memories to compare (default: all the model has)",
    )
    parser.add_argument(
        "--recalls",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="first and previous places (default: both)",
    )
    parser.add_argument(
        "--horizons",
        action="extend",
        nargs="+",
        type=int,
        metavar="N",
        help="of 1 to 8 chunks (default: all)",
    )
    parser.add_argument(
        "--num-moves-before",
        type=int,
        metavar="N",
        help="moves of other cubes before the one asked back first moves (default: 0)",
    )
    parser.add_argument(
        "--num-noise-draws",
        type=int,
        metavar="N",
        help="noise levels averaged in a memory's writes (default: as many as each memory has)",
    )
    parser.add_argument(
        "--no-loop-model",
        metavar="NAME",
        help="what the model's slow-fast loop began with, also shipped or a folder "
        "(default: tabletop)",
    )
    parser.add_argument(
        "--base-model",
        action="store_true",
        help="measure what fast learning costs in a model of the paper's size (1.7 B, random "
        "weights, 25 and 50 denoiser calls; needs a GPU) in place of the shipped one",
    )


def _add_policy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sb3",
        action="extend",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="evaluate these PPO or SAC checkpoints of Stable-Baselines3 (.zip) too; their pickles "
        "are not opened",
    )
    parser.add_argument(
        "--planners",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="evaluate these planners too, which takes by far the longest: video_plan, mpc_cem, "
        "mpc_mppi, mpc_simulator",
    )


def _add_env_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the environment; without a default, it must be given."""
    parser.add_argument(
        "--env",
        required=default is None,
        metavar="ID",
        help="that the model was trained in, also module:id"
        + (f" (default: {default})" if default else ""),
    )
    parser.add_argument("--env-kwargs", metavar="JSON", help="of gymnasium.make, with --env")


def _chosen_env(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of an environment that was given."""
    env, kwargs = (getattr(args, name, None) for name in ("env", "env_kwargs"))
    require(env is not None or kwargs is None, "--env-kwargs goes with --env: give both")
    if env is None:
        return {}
    return {"env": env, "env_kwargs": json_object(kwargs or "{}", "--env-kwargs")}


def _add_policy_learning_options(parser: argparse.ArgumentParser) -> None:
    _add_env_options(parser, default="sfvgen/TabletopReturn-v0, level 1, one instruction")
    _add_num_workers(parser, "train and test the policies")
    parser.add_argument(
        "--trained-in",
        action="extend",
        nargs="+",
        metavar="WORLD",
        help="none, imagination, simulator (default: all)",
    )
    parser.add_argument("--algorithm", metavar="NAME", help="SAC or PPO (default: SAC)")
    parser.add_argument(
        "--num-training-seeds",
        type=int,
        metavar="N",
        help="policies trained in each way (default: 3)",
    )
    parser.add_argument(
        "--num-start-steps",
        type=int,
        metavar="N",
        help="real steps that record the frames imagination starts from (default: 20000)",
    )
    starts = parser.add_mutually_exclusive_group()
    starts.add_argument(
        "--start-policy", metavar="NAME", help="that makes these steps (default: random)"
    )
    starts.add_argument(
        "--start-data",
        metavar="DIR",
        help="store of `sfvgen collect` to take these frames from instead; where it is the data "
        "that the model was trained on, they cost no further steps",
    )
    parser.add_argument(
        "--num-imagined-steps",
        type=int,
        metavar="N",
        help="of each policy trained in imagination (default: 100000)",
    )
    parser.add_argument(
        "--horizon",
        type=int,
        metavar="N",
        help="steps after which an imagined episode is cut off (default: 32)",
    )
    parser.add_argument(
        "--simulator-budgets",
        action="extend",
        nargs="+",
        type=float,
        metavar="X",
        help="real steps of the policies trained in the simulator, as multiples of those behind "
        "imagination: of the model's data and of the start frames (default: 1 5)",
    )
    parser.add_argument(
        "--num-worlds",
        type=int,
        metavar="N",
        help="imagined worlds that step together (default: 16)",
    )
    parser.add_argument(
        "--num-simulators",
        type=int,
        metavar="N",
        help="simulators that step together (default: 4)",
    )
    parser.add_argument(
        "--model-steps",
        type=int,
        metavar="N",
        help="real steps that the world model was trained on (default: as the model tells)",
    )


def _add_planning_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="policies to compare (default: all)",
    )
    parser.add_argument(
        "--levels",
        action="extend",
        nargs="+",
        type=int,
        metavar="N",
        help="of 1 to 4 (default: all)",
    )
    parser.add_argument(
        "--num-candidates",
        type=int,
        metavar="N",
        help="of an iteration of a search in the world model (default: 16; 256 suits a GPU)",
    )


def _add_goal_planning_options(parser: argparse.ArgumentParser) -> None:
    _add_env_options(parser)
    parser.add_argument(
        "--methods",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="video_plan, mpc_reward, mpc, mpc_distance, expert, random (default: all but "
        "mpc_distance, for which the model needs a temporal distance)",
    )
    parser.add_argument(
        "--num-candidates", type=int, metavar="N", help="of an iteration of the search"
    )
    parser.add_argument(
        "--num-videos",
        type=int,
        metavar="N",
        help="episodes of each planner that are shown in videos/ beside the result file, imagined "
        "beside real frames (default: 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write and print the figures, and draw them."""
    from sfvgen_planner.evaluation.measure import measure

    out = Path(args.out)
    evaluation = _EVALUATIONS[args.evaluation]
    module = import_module(f"sfvgen_planner.evaluation.{evaluation.module}")
    config = getattr(module, evaluation.config).of(args.model, args.device, args.episodes)
    config = replace(config, **_chosen(args, *_SETTINGS), **_chosen_env(args))
    picture = None if getattr(args, "plot", None) is None else Path(args.plot)
    if picture is not None:
        from sfvgen_planner.evaluation.plotting import check_picture
        from sfvgen_planner.files import prepare_folder

        check_picture(picture)
        prepare_folder(picture.parent)
    for figure in measure(out, config, module.FIGURES, args.only):
        low, high = figure.ci95
        told = " ".join(f"{key}={value}" for key, value in figure.fields.items())
        print(f"{figure.name} {figure.value:.4g} {figure.unit} [{low:.4g}, {high:.4g}] {told}")
    if picture is not None and evaluation.plot is not None:
        file, function, _ = evaluation.plot
        draw = getattr(import_module(f"sfvgen_planner.evaluation.{file}"), function)
        draw(out, picture)
    return 0


def _chosen(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given, for the settings of the same names."""
    given = {name: getattr(args, name, None) for name in names}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
