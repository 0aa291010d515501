"""What ships, and who imports whom."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections import Counter
from importlib.metadata import requires
from pathlib import Path

import pytest

import gjwm

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in (ROOT / "gjwm").rglob("*.py")
}
ENVS = {f"gjwm.envs.{p.stem}": p for p in (ROOT / "envs").glob("*.py") if p.stem != "__init__"}
ENVS["gjwm.envs"] = ROOT / "envs" / "__init__.py"

# Imports run down this list: a room may use those in the rows above it and itself. `envs` uses
# nothing, and only `data` and what opens the package use `envs`.
ROWS = [
    {"_core"},
    {"objectives"},
    {"models"},
    {"planning"},
    {"data"},
    {"training"},
    {"evaluation"},
    {"rl"},
    {"reporting"},
    {"study"},
    {"cli"},
]
RANK = {room: i for i, row in enumerate(ROWS) for room in row}

# Heavy or replaceable dependencies live behind one door each: package -> rooms or modules.
DOORS = {
    "wandb": {"gjwm.reporting.logging"},
    "tensorboard": {"gjwm.reporting.logging"},
    "imageio": {"gjwm._core.video"},
    "imageio_ffmpeg": {"gjwm._core.video"},
    "matplotlib": set(),  # scripts may draw with it, the library draws its own pages
    "hydra": {"gjwm.cli"},
    "omegaconf": {"gjwm.cli"},
    "joblib": {"gjwm.study.launch"},
    "submitit": {"gjwm.study.launch"},
    "safetensors": {"gjwm.models.sharing"},
    "huggingface_hub": {"gjwm.models.sharing"},
    "h5py": {"gjwm.data"},
    "pyarrow": {"gjwm.data"},
    "dm_control": {"gjwm.envs"},
    "mujoco": {"gjwm.envs"},
    "mujoco_warp": {"gjwm.envs.warp"},
    "warp": {"gjwm.envs.warp"},
}
# Where a distribution's import has another name than the distribution.
IMPORT_NAMES = {
    "pyyaml": "yaml",
    "hydra-core": "hydra",
    "pillow": "PIL",
    "warp-lang": "warp",
    "pytest-xdist": "xdist",
}
TOOLS = {"pytest", "pytest-cov", "pytest-xdist", "ruff", "build", "pyright", "pre-commit"} | {
    *("sphinx", "furo", "myst-parser", "sphinx-copybutton"),
    # the arena's: imported by name, or by what is
    *("stable-worldmodel", "ogbench", "pymunk", "pygame", "shapely", "opencv-python-headless"),
}


def room_of(module: str) -> str:
    """The part of a module's name below gjwm; "" for the front door and __main__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in (*RANK, "envs") else ""


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


USES = {
    name: imports(path, name if path.name == "__init__.py" else name.rpartition(".")[0])
    for name, path in {**MODULES, **ENVS}.items()
}


# -- who imports whom ------------------------------------------------------------------------------


def test_every_module_is_in_a_room():
    assert {room_of(name) for name in MODULES} == {"", *RANK}
    assert {name for name in MODULES if not room_of(name)} == {"gjwm", "gjwm.__main__"}


def test_imports_run_one_way():
    wrong = [
        f"{name} imports {used}"
        for name in MODULES
        for used in USES[name]
        if used.startswith("gjwm.") and room_of(name) and room_of(used) in RANK
        if RANK[room_of(used)] > RANK[room_of(name)]
    ]
    assert wrong == []


def test_envs_know_nothing_of_the_library_and_only_data_knows_envs():
    below = {
        f"{name} imports {used}"
        for name in ENVS
        for used in USES[name]
        if used.startswith("gjwm") and not used.startswith("gjwm.envs")
    }
    assert below == {"gjwm.envs.warp imports gjwm"} & below  # `from gjwm import envs`
    above = {
        name
        for name in MODULES
        if room_of(name) not in ("", "data") and any(u.startswith("gjwm.envs") for u in USES[name])
    }
    assert above == set(), "only gjwm.data imports gjwm.envs"


@pytest.mark.parametrize("package", sorted(DOORS))
def test_a_dependency_has_one_door(package):
    users = {name for name in USES if any(used.split(".")[0] == package for used in USES[name])}
    assert bool(users) == bool(DOORS[package])
    strangers = {
        name
        for name in users
        if not any(name == door or name.startswith(f"{door}.") for door in DOORS[package])
    }
    assert strangers == set()


def test_the_library_imports_without_simulators_loggers_and_films():
    doors = ("gjwm.cli.app", "gjwm.__main__", "gjwm._core.video", "gjwm.reporting.films")
    library = [
        name for name in sorted(MODULES) if name not in doors and not name.startswith("gjwm.cli.")
    ]
    heavy = sorted(set(DOORS) - {"h5py"})
    code = f"import sys, {', '.join(library)}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("use", ["import gjwm", "import gjwm.cli.app as a; a.main(['--help'])"])
def test_loggers_simulators_and_films_are_imported_only_when_used(use):
    heavy = ["wandb", "tensorboard", "imageio", "dm_control", "mujoco", "huggingface_hub"]
    code = f"import sys; {use}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


# -- what is declared and what is public -----------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml with tomllib")
def test_every_declared_dependency_is_imported_and_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = [text for group in groups for text in group]
    names = {re.match(r"[\w-]+", text)[0] for text in declared} - TOOLS
    modules = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    scripts = set().union(*(imports(p, "") for p in (ROOT / "scripts").rglob("*.py")))
    used = {module.split(".")[0] for module in set().union(*USES.values(), scripts)}
    assert modules - used == set(), "declared and never imported"
    ours = {path.stem for path in (ROOT / "scripts").iterdir()}
    ours |= {"gjwm", "", "omegaconf"}  # omegaconf comes with hydra
    assert used - set(sys.stdlib_module_names) - modules - ours == set(), "imported, not declared"
    assert requires("gjwm") is not None


def public_definitions() -> dict[str, str]:
    """Full name -> name of each public function and class."""
    return {
        f"{name}.{node.name}": node.name
        for name, path in {**MODULES, **ENVS}.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        # Environments are made by id.
        if not (name.startswith("gjwm.envs") and node.name.endswith("Env"))
    }


def test_every_public_name_is_used_outside_the_tests():
    files = [
        p
        for folder in ("gjwm", "envs", "scripts", "examples")
        for p in (ROOT / folder).rglob("*.py")
    ]
    words = Counter()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name):
                words[node.id] += 1
            elif isinstance(node, ast.Attribute):
                words[node.attr] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if entry := re.fullmatch(r"[\w.]+:(\w+)", node.value):  # "module:name"
                    words[entry[1]] += 1
    texts = [
        *(ROOT / "configs").rglob("*.yaml"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
    ]
    public = " ".join(PUBLIC.values()).split()
    mentioned = set(public) | set(re.findall(r"\w+", "\n".join(p.read_text() for p in texts)))
    unused = {
        name for name in public_definitions().values() if not words[name] and name not in mentioned
    }
    assert unused == set(), "nobody uses these: use, delete, or make them private"


# Names that checks outside the repository import.
PUBLIC = {
    "gjwm": "__version__ make_env make_vec collect train evaluate film Recipe WorldModel MPCAgent",
    "gjwm.objectives": "epps_pulley epps_pulley_exact SIGReg SlicedWasserstein SlicedEnergy BHEP "
    "GaussianKL VICReg Subspaces NoRegularizer JointEmbeddingObjective",
    "gjwm.models": "MLPEncoder ConvEncoder Prediction DeterministicDynamics GaussianDynamics "
    "EnsembleDynamics MixtureDynamics LinearGaussianDynamics WorldModel",
    "gjwm.planning": "CEM ICEM MPPI GradientPlanner RandomShooting GoalCost RewardCost RiskCost "
    "SumCost",
    "gjwm.data": "ReplayBuffer",
    "gjwm.evaluation": "embedding_report calibration_report",
    "gjwm.envs": "make_vec",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_there(module):
    there = importlib.import_module(module)
    assert [name for name in PUBLIC[module].split() if not hasattr(there, name)] == []


def test_slow_tests_are_named_as_they_are():
    tree = ast.parse((ROOT / "tests" / "conftest.py").read_text())
    (slow,) = (
        n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "SLOW"
    )
    for entry in ast.literal_eval(slow):
        file, _, test = entry.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(), entry


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


TREE = ("gjwm", "envs", "configs", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the tree, an sdist of it, a wheel of the sdist)."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    for name in TREE:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tree)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, tree],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    return tree, next(folder.glob("gjwm-*.tar.gz")), next(folder.glob("gjwm-*.whl"))


def files(folder):
    """Names of the files below a folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_the_sdist_and_the_wheel_hold_exactly_the_tree(built):
    tree, sdist, wheel = built
    assert wheel.name.startswith(f"gjwm-{gjwm.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"gjwm/{name}" for name in files(tree / "gjwm")}
    expected |= {f"gjwm/{part}/{n}" for part in ("envs", "configs") for n in files(tree / part)}
    assert inside == expected
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    expected = {f"{part}/{name}" for part in TREE[:3] for name in files(tree / part)}
    made = {name for name in names if name.startswith("gjwm.egg-info/")}
    assert names - made == expected | {*TREE[3:], "PKG-INFO", "setup.cfg"}


@pytest.mark.slow
def test_the_wheel_works_by_itself_in_an_unrelated_folder(built, tmp_path):
    """gjwm comes from the wheel alone, all others from where the tests have them."""
    venv.create(tmp_path / "venv", symlinks=os.name != "nt", with_pip=False)
    scripts = Path(sysconfig.get_path("scripts", vars={"base": str(tmp_path / "venv")}))
    library = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    others = [path for path in sys.path if path.endswith("-packages")]
    (library / "others.pth").write_text("\n".join(others) + "\n")  # their own .pth are not read
    python = scripts / f"python{'.exe' if os.name == 'nt' else ''}"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", built[2]], check=True, timeout=300)
    here = tmp_path / "elsewhere"
    here.mkdir()

    def said(*command):
        done = subprocess.run(
            command,
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    names = "gjwm, gjwm.envs, gjwm.configs"
    code = f"import {names}; print(*(m.__file__ for m in ({names})), sep='\\n')"
    for line in said(python, "-c", code).splitlines():
        assert Path(line).is_relative_to(library), line
    said(scripts / "gjwm", "play", "two-room", "episodes=1")
    for command in ("collect", "train", "evaluate"):
        said(scripts / "gjwm", command, *SMALL)
    made = {"play-two-room.mp4", "data/small/metadata.json"}
    made |= {f"runs/small/{name}" for name in ("checkpoint.pt", "evaluation.json", "report.html")}
    assert made <= files(here)


SMALL = """
    experiment=two_room env.size=16 threads=1 name=small dataset=data/small latent_dim=4
    logger.wandb=disabled encoder.channels=[8] encoder.hidden=16 dynamics.hidden=16
    dynamics.std_hidden=8 planner.samples=16 planner.elites=4 planner.iterations=2
    collect.episodes=8 collect.length=20 collect.behaviour=uniform collect.workers=0
    calibrate.episodes=0 train.steps=20 refine.steps=0 reach.steps=5 reach.batch=16 decode.steps=5
    evaluate.episodes=8 evaluate.length=20 evaluate.pairs=4 evaluate.steps=6 evaluate.horizon=6
    evaluate.probe_steps=10 evaluate.oracle=false report.worst=0 report.typical=0
""".split()
