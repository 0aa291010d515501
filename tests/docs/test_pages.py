"""The documentation tells the truth: its blocks run, its commands exist, its links lead on."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("run_page.py")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not {"_build", "experiments"} & set(page.parts)]

spec = importlib.util.spec_from_file_location("run_page", SCRIPT)
run_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_page)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def has_code(page: Path) -> bool:
    return any(kind in ("python", "run") for kind, _ in run_page.blocks(page))


HOW_TO = [page for page in PAGES if page.parent.name == "how-to" and has_code(page)]
OTHERS = [page for page in PAGES if page not in HOW_TO]


@pytest.mark.parametrize("page", OTHERS, ids=name)
def test_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run_page.run(page)


@pytest.mark.parametrize("page", HOW_TO, ids=name)
def test_a_how_to_works_word_for_word_in_a_copy_of_the_repository(page, tmp_path):
    if page.name == "share-a-model.md":
        pytest.importorskip("safetensors")  # of the extra that the page installs
    ignore = shutil.ignore_patterns("__pycache__")
    for source, target in (("gjwm", "gjwm"), ("envs", "gjwm/envs"), ("configs", "gjwm/configs")):
        shutil.copytree(ROOT / source, tmp_path / target, ignore=ignore)
    for folder in ("envs", "configs"):  # as in the repository, where they lie beside gjwm/
        (tmp_path / folder).symlink_to(tmp_path / "gjwm" / folder)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), str(page)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_links_and_pictures_lead_to_files():
    links = [
        (page.parent / link, f"{name(page)}: {link}")
        for page in PAGES
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in link
    ]
    assert len(links) > 50 and not [link for target, link in links if not target.exists()]


def test_prose_stays_within_100_columns():
    free = ("|", "![")  # tables and pictures
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        lines = [line for line in prose.splitlines() if not line.startswith(free)]
        assert max(map(len, lines)) <= 100, name(page)


def test_the_readme_fits_on_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
