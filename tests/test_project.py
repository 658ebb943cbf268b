"""The project's own promises: what the wheel holds, what is pinned, which floor knows which."""

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "sfvgen_planner": ROOT / "sfvgen_planner",
    "sfvgen_envs": ROOT / "envs/sfvgen_envs",
    "sfvgen_policies": ROOT / "policies/sfvgen_policies",
}
FLOORS = [
    "sfvgen_envs",
    "sfvgen_policies",
    "sfvgen_planner.errors",
    "sfvgen_planner.data",
    "sfvgen_planner.world_model",
    "sfvgen_planner.memory",
    "sfvgen_planner.imagination",
    "sfvgen_planner.planning",
    "sfvgen_planner.evaluation",
    "sfvgen_planner.cli",
]


def package_files() -> set[str]:
    """All files of the three packages, as paths in a wheel."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_wheel_holds_every_file_of_the_packages_and_no_other(installed: Path) -> None:
    found = {
        path.relative_to(installed).as_posix()
        for path in installed.rglob("*")
        if path.is_file() and ".dist-info" not in path.as_posix()
    }
    assert found == package_files()


def test_environment_runs_from_the_wheel(installed: Path) -> None:
    code = (
        "import gymnasium, sfvgen_planner\n"
        "from sfvgen_planner.data import make_env\n"
        "env = make_env('sfvgen/TabletopReturn-v0')\n"
        "observation, info = env.reset(seed=0)\n"
        "print(sfvgen_planner.__file__, observation['image'].shape, bool(info['instruction']))\n"
        "env.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed.parent,
        env={"PYTHONPATH": str(installed), "MUJOCO_GL": "egl", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{installed}/sfvgen_planner/__init__.py (64, 64, 3) True\n"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_all_that_make_installs() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    pinned = {normal(pin.name) for pin in pins}
    needed: dict[str, set[str]] = {}

    def visit(name: str, extras: set[str]) -> None:
        known = needed.setdefault(normal(name), set())
        if known >= extras and known:
            return
        known |= extras
        try:
            requirements = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            return
        for requirement in requirements:
            marker = requirement.marker
            # A parent that asks for one version exactly pins its child itself.
            exact = any(part.operator == "==" for part in requirement.specifier)
            applies = marker is None or any(marker.evaluate({"extra": e}) for e in extras)
            if applies and not exact:
                visit(requirement.name, {"", *requirement.extras})

    visit("sfvgen-planner", {"", "dev"})
    assert set(needed) - pinned - {"sfvgen-planner"} == set()


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(module: str) -> int | None:
    """The floor that a module stands on; None for other libraries and for the package itself."""
    for number, name in enumerate(FLOORS):
        if module == name or module.startswith(f"{name}."):
            return number
    return None


@pytest.mark.parametrize("name", FLOORS)
def test_each_floor_imports_only_floors_below(name: str) -> None:
    package, *rest = name.split(".")
    place = PACKAGES[package].joinpath(*rest)
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    own = FLOORS.index(name)
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in sorted(imports(file))
        if (target := floor(module)) is not None and target > own
    ]
    # The plugin works with any environment, hence knows none.
    if package == "sfvgen_planner":
        wrong += [
            f"{file.relative_to(ROOT)} imports {module}"
            for file in files
            for module in sorted(imports(file))
            if module.split(".")[0] == "sfvgen_envs"
        ]
    assert not wrong
