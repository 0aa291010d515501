"""What ships, and who imports whom."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gjwm

ROOT = Path(__file__).parent.parent
LIBRARY = [p for p in (ROOT / "gjwm").rglob("*.py") if p != ROOT / "gjwm" / "__init__.py"]
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in LIBRARY
}
ENVS = {f"gjwm.envs.{p.stem}": p for p in (ROOT / "envs").glob("*.py") if p.stem != "__init__"}

# Imports run down this list of rooms: a room may use those before it and itself.
ROOMS = [
    "_core",
    "objectives",
    "models",
    "planning",
    "data",
    "training",
    "evaluation",
    "rl",
    "reporting",
    "study",
    "cli",
]
# What builds objects from yaml; the other commands only read settings, and `data` and `benchmark`
# have none.
BUILDERS = {
    "gjwm.cli.app",
    *(f"gjwm.cli.{name}" for name in ("config", "train", "online", "evaluate", "video")),
}
# Heavy or replaceable dependencies live behind one door each.
DOORS = {
    "wandb": {"gjwm.reporting.logging"},
    "imageio": {"gjwm._core.video"},
    "matplotlib": set(),  # scripts may draw with it, the library draws its own pages
    "hydra": BUILDERS,
    "omegaconf": BUILDERS
    | {f"gjwm.cli.{name}" for name in ("collect", "run", "run_folder", "study")},
    "joblib": {"gjwm.study.launch"},
    "submitit": {"gjwm.study.launch"},
    "dm_control": {
        "gjwm.envs.control_suite",
        "gjwm.envs.control_vector",
    },
    "mujoco": {
        "gjwm.envs.control_suite",
        "gjwm.envs.control_vector",
        "gjwm.envs.gym_env",
        "gjwm.envs.rendering",
        "gjwm.envs.variation",
    },
    "mujoco_warp": {"gjwm.envs.warp"},
    "warp": {"gjwm.envs.warp"},
}


def imports(path: Path, package: str) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


RANK = {f"gjwm.{room}": i for i, room in enumerate(ROOMS)} | {"gjwm.__main__": len(ROOMS)}


def layer_of(module: str) -> int | None:
    """The row of a module or of what it imports, by the part of the name below gjwm."""
    return RANK.get(".".join(module.split(".")[:2]))


def test_every_module_has_its_layer():
    assert set(RANK) == {".".join(name.split(".")[:2]) for name in MODULES}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_one_way(name):
    own = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for used in imports(MODULES[name], own):
        rank = layer_of(used)
        assert rank is None or rank <= layer_of(name), f"{name} imports {used}"


@pytest.mark.parametrize("name", sorted(ENVS))
def test_envs_know_nothing_of_the_library(name):
    used = {module for module in imports(ENVS[name], "gjwm.envs") if module.split(".")[0] == "gjwm"}
    assert all(module.startswith("gjwm.envs") for module in used), used


@pytest.mark.parametrize("package", sorted(DOORS))
def test_a_dependency_has_one_door(package):
    users = {
        name
        for name, path in {**MODULES, **ENVS}.items()
        if any(used.split(".")[0] == package for used in imports(path, name.rpartition(".")[0]))
    }
    assert users == DOORS[package]


def test_the_library_imports_without_simulators_loggers_and_films():
    heavy = sorted(DOORS)
    doors = ("gjwm.cli.app", "gjwm.__main__", "gjwm._core.video", "gjwm.reporting.films")
    library = [
        name for name in sorted(MODULES) if name not in doors and not name.startswith("gjwm.cli.")
    ]
    code = f"import sys, {', '.join(library)}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_public_names_of_modules_are_documented():
    """Every public class and function says what it is; arguments' shapes stand in the text."""
    bare = []
    for name, path in {**MODULES, **ENVS}.items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    bare.append(f"{name}.{node.name}")
    assert bare == []


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_tree(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("gjwm", "envs", "configs"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    wheel = next(tmp_path.glob("gjwm-*.whl"))
    assert wheel.name.startswith(f"gjwm-{gjwm.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"gjwm/{p.relative_to(tree / 'gjwm')}" for p in (tree / "gjwm").rglob("*") if p.is_file()
    }
    expected |= {f"gjwm/{p.relative_to(tree)}" for p in (tree / "envs").rglob("*") if p.is_file()}
    expected |= {
        f"gjwm/{p.relative_to(tree)}" for p in (tree / "configs").rglob("*") if p.is_file()
    }
    assert inside == expected
