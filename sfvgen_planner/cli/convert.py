"""`sfvgen convert`: episode stores to and from other formats."""

import argparse

from sfvgen_planner.errors import SfvgenError

MINARI = "minari:"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "convert",
        help="turn an episode store into a Minari dataset, or back",
        description="Convert between an episode store (a folder) and a local Minari dataset, "
        "without loss. MINARI_DATASETS_PATH says where Minari keeps its datasets.",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder of a store, or minari:DATASET-ID")
    parser.add_argument("target", metavar="TARGET", help="minari:DATASET-ID, or a new folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert SOURCE to TARGET."""
    from_dataset, to_dataset = args.source.startswith(MINARI), args.target.startswith(MINARI)
    if from_dataset == to_dataset:
        raise SfvgenError(
            "one of SOURCE and TARGET must be a folder and the other minari:DATASET-ID, such as "
            "minari:tabletop/return-v0"
        )
    from sfvgen_planner.data.minari_io import from_minari, to_minari
    from sfvgen_planner.data.store import EpisodeStore

    if to_dataset:
        store = EpisodeStore.open(args.source)
        to_minari(store, args.target.removeprefix(MINARI))
    else:
        store = from_minari(args.source.removeprefix(MINARI), args.target)
    print(f"{args.target}: {len(store)} episodes")
    return 0
