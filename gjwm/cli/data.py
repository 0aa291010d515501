"""`gjwm data info|verify|convert`: datasets from the command line."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from gjwm.data.coverage import Coverage
from gjwm.data.dataset import bytes_in_memory, dataset_info, read_episodes, verify
from gjwm.data.dataset.export import write_minari
from gjwm.data.dataset.foreign import FORMATS, convert
from gjwm.data.dataset.lerobot import write_lerobot

TARGETS = {"minari": (write_minari, "Minari"), "lerobot": (write_lerobot, "LeRobot")}

USAGE = f"""usage: gjwm data info DATASET
       gjwm data verify DATASET
       gjwm data convert SOURCE DATASET [from={"|".join(FORMATS)}] [name=value ...]
       gjwm data convert DATASET TARGET to=minari
       gjwm data convert DATASET TARGET to=lerobot [pictures=png|video] [name=value ...]

  info     what a dataset holds, its memory and the coverage of its world
  verify   read every byte and name what is wrong; status 1 if anything is
  convert  write a dataset of this package from SOURCE; docs/data.md lists formats and options"""


def data_command(arguments: Sequence[str]) -> int:
    """Run one command -> exit status.

    Raises:
        ValueError: for wrong arguments.
    """
    command, *rest = arguments or [""]
    if command == "info" and len(rest) == 1:
        print(_info(rest[0]))
        return 0
    if command == "verify" and len(rest) == 1:
        problems = verify(rest[0])
        for problem in problems:
            print(problem)
        print(f"{rest[0]}: {f'{len(problems)} problems' if problems else 'nothing is wrong'}")
        return 1 if problems else 0
    if command == "convert" and len(rest) >= 2 and not any("=" in path for path in rest[:2]):
        options = dict(option.partition("=")[::2] for option in rest[2:])
        kind = options.pop("from", None)
        if "to" in options:
            to = options.pop("to")
            if to not in TARGETS or kind not in (None, "gjwm"):
                raise ValueError(
                    f"to must be one of {', '.join(TARGETS)}, of a dataset of this package, got "
                    f"{' '.join(rest[2:])}."
                )
            written, name = TARGETS[to]
            taken = [*inspect.signature(written).parameters][2:]
            if strange := [option for option in options if option not in taken]:
                raise ValueError(
                    f"to={to} does not take {', '.join(strange)}; it takes "
                    f"{', '.join(taken) or 'no options'}."
                )
            result = written(*rest[:2], **options)
            print(f"{rest[1]}: {result['episodes']} episodes, {result['steps']} steps for {name}")
            return 0
        result = convert(rest[0], rest[1], kind, **options)
        print(
            f"{rest[1]}: {result['episodes']} episodes, {result['steps']} steps from "
            f"{result['from']}"
        )
        return 0
    raise ValueError(f"expected another form of the command. {USAGE}")


def _info(path: str) -> str:
    info = dataset_info(path)
    coverage = Coverage()
    returns = []
    for episode in read_episodes(path):
        coverage.add(episode)
        returns.append(float(episode.r.sum()))
    size = sum(file.stat().st_size for file in Path(path).iterdir() if file.is_file())
    seen = coverage.report()
    lines = [
        ("env", f"{info['env_id']} {info['env_kwargs']}"),
        ("episodes, steps", f"{info['episodes']}, {info['steps']}"),
        ("observations", f"{_space(info['observation_space'])}, frame_stack {info['frame_stack']}"),
        ("actions", _space(info["action_space"])),
        ("renderer", info["renderer"] or "none"),
        (
            "written by",
            ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        ),
        (
            "files",
            f"{len(info['shards'])} shards, {size / 2**20:.1f} "
            f"MiB{', compressed' * info['compress']}",
        ),
        ("in memory", f"{bytes_in_memory(info) / 2**20:.1f} MiB"),
    ]
    if returns:
        lines += [
            (
                "return",
                f"mean {sum(returns) / len(returns):.3g}, from {min(returns):.3g} to "
                f"{max(returns):.3g}",
            ),
            (
                "coverage",
                f"{seen['cells']} cells of {seen['of']}, as even as {seen['effective_cells']:.1f} "
                f"visited alike",
            ),
        ]
    return "\n".join(f"{name:16s} {value}" for name, value in lines)


def _space(description: dict) -> str:
    if description["type"] == "Dict":
        return ", ".join(f"{name}: {_space(box)}" for name, box in description["spaces"].items())
    return f"{description['dtype']} ({', '.join(map(str, description['shape']))})"
