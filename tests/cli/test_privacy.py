"""Nothing leaves the machine, and what is written is what docs/reliability.md lists."""

import os
import re
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = """
    experiment=two_room env.size=16 threads=1 latent_dim=4 encoder.channels=[8,8] encoder.hidden=16
    dynamics.hidden=16 dynamics.std_hidden=8 planner.samples=16 planner.elites=4
    planner.iterations=1 collect.workers=1 collect.episodes=8 collect.length=20 calibrate.episodes=8
    calibrate.horizon=4 calibrate.particles=8 train.steps=6 decode.steps=2 reach.steps=2
    reach.batch=16 reach.dim=4 checkpoint.every=3 logger.every=2 logger.wandb=disabled
    evaluate.episodes=8 evaluate.length=20 evaluate.pairs=2 evaluate.steps=4 evaluate.horizon=4
    evaluate.probe_steps=5 report.worst=1 report.typical=0 video.episodes=1 video.grid=2
    video.readout_episodes=8
""".split()
ONLINE = """
    experiment=suite task=pendulum-swingup name=two-room latent_dim=4 +env.max_episode_steps=20
    encoder.hidden=[16] dynamics.hidden=16 dynamics.std_hidden=8 heads.reward.hidden=[16]
    heads.value.hidden=16 heads.policy.hidden=[16] discrepancy.num_slices=8 planner.samples=8
    planner.elites=4 collect.workers=1 logger.wandb=disabled online.steps=60 online.aimless_steps=40
    online.lanes=2 online.batch=8 online.horizon=2 online.episodes=2 online.log_every=20
    online.evaluate_every=60 online.checkpoint_every=20 online.policy_plans=2
""".split()
# Read by every Python that starts, workers too: a connection to elsewhere, a name looked up, or a
# datagram is noted and fails. Sockets between processes of this machine are files.
GUARD = """
import os, socket, sys

os.uname = lambda real=os.uname(): os.uname_result((real[0], "odd-machine", *real[2:]))
socket.gethostname = lambda: "odd-machine"

def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        if event != "socket.getaddrinfo" and isinstance(arguments[-1], (str, bytes)):
            if event != "socket.gethostbyname":
                return  # a socket of a file
        with open(os.environ["NOTED"], "a") as file:
            file.write(f"{event} {arguments[1:] or arguments}\\n")
        raise PermissionError(f"refused: {event}")

sys.addaudithook(guard)
"""


@pytest.fixture
def guarded(tmp_path, request):
    """Runs Python in an empty folder and home, whose connections fail and are noted."""
    for name in ("guard", "work", "home"):
        (tmp_path / name).mkdir()
    # Workers have sockets there, whose names must be short.
    short = tempfile.TemporaryDirectory()
    request.addfinalizer(short.cleanup)
    (tmp_path / "tmp").symlink_to(short.name, target_is_directory=True)
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "guard"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NOTED": str(tmp_path / "noted"),
        "HOME": str(tmp_path / "home"),
        "TMPDIR": short.name,
        "OMP_NUM_THREADS": "1",
        "USER": "odd-user",
        "LOGNAME": "odd-user",  # what getpass.getuser says
    }
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True
        )

    return run


def listed() -> dict[str, list[str]]:
    """Command -> patterns of the files that docs/reliability.md says it writes."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (`(?:data|runs|play-).*) \|$", page, re.MULTILINE)
    rows += re.findall(r"^\| `(online)` \| as `train`, with (.*); no `decoder.pt` \|$", page, re.M)
    table = {
        command: [re.sub(r"<\w+>", "two-room", name) for name in re.findall(r"`([^`]+)`", text)]
        for command, text in rows
    }
    table["online"] += [name for name in table["train"] if not name.endswith("decoder.pt")]
    return table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("commands", "settings"),
    [(("collect", "train", "evaluate", "report", "video"), SMALL), (("online",), ONLINE)],
    ids=["goals", "reward"],
)
def test_no_command_connects_and_each_writes_what_is_listed(commands, settings, guarded, tmp_path):
    work, table, before = tmp_path / "work", listed(), {}
    for command in commands:
        done = guarded("-m", "gjwm", command, *settings)
        assert done.returncode == 0, done.stderr[-2000:]
        files = {
            str(path.relative_to(work)): path.stat().st_mtime_ns
            for path in work.rglob("*")
            if path.is_file()
        }
        written = [name for name, time in files.items() if before.get(name) != time]
        unlisted = [n for n in written if not any(fnmatch(n, p) for p in table[command])]
        missing = [p for p in table[command] if not any(fnmatch(n, p) for n in written)]
        assert (unlisted, missing) == ([], []), command
        before = files
    assert not (tmp_path / "noted").exists(), (tmp_path / "noted").read_text()
    for file in filter(Path.is_file, work.rglob("*")):
        assert not re.search(b"odd-(user|machine)", file.read_bytes()), file
    for elsewhere in (tmp_path / "home", tmp_path / "tmp"):
        assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


def test_names_would_have_been_those_that_are_searched_for(guarded):
    code = "import getpass, platform, socket; print(getpass.getuser(), platform.node(), end=' ')"
    done = guarded("-c", f"{code}; print(socket.gethostname())")
    assert done.stdout.split() == ["odd-user", "odd-machine", "odd-machine"], done.stderr


def test_a_connection_would_have_been_noted(guarded, tmp_path):
    for code in (
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
        "import subprocess, sys; raise SystemExit(subprocess.run([sys.executable, '-c',"
        " 'import socket; socket.socket().connect((\"127.0.0.1\", 9))']).returncode)",
    ):
        assert guarded("-c", code).returncode != 0
    noted = (tmp_path / "noted").read_text()
    assert noted.count("socket.") >= 4 and "192.0.2.1" in noted and "127.0.0.1" in noted
