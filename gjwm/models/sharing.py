"""A model as others get it: a folder with `model.safetensors`, `config.json`, a model card,
`README.md`, and a film where the run has one, on disk or on the Hugging Face hub. See
docs/how-to/share-a-model.md.

`config.json` describes each part by its class and arguments, says where the model comes from and
which version wrote it, and ends with a hash of itself. The weights carry the same hash, so that
files of two models are told apart. A decoder is part of it, as "decoder.*" among the weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gjwm import __version__
from gjwm._core.configured import describe, load_weights, rebuild
from gjwm._core.files import replacing
from gjwm._core.machine import check_device
from gjwm.models.pretrained import load_shipped, nearest_shipped, shipped

if TYPE_CHECKING:
    from gjwm.models.world_model import WorldModel

log = logging.getLogger(__name__)

FORMAT = 2  # of config.json
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILM, FILM_MB = "goals.mp4", 5  # of `gjwm video`; a larger one is not shared
DECODER = "decoder."
AGAIN = "save it, or download it, again"

Evaluation = Mapping[str, Any] | str | Path | None  # a report, or its file


def _library(name: str, doing: str) -> Any:
    """A library of the extra `hub`, imported only when it is used."""
    try:
        if name == "safetensors":
            import safetensors.torch

            return safetensors
        import huggingface_hub.constants

        return huggingface_hub
    except ImportError as error:
        raise ImportError(f"{doing} needs {name}: pip install 'gjwm[hub]'.") from error


# -- writing ---------------------------------------------------------------------------------------


def save_pretrained(model: WorldModel, folder: str | Path, evaluation: Evaluation = None) -> Path:
    """See `WorldModel.save_pretrained`. The film is that of the run whose evaluation.json is given:
    `videos/goals.mp4` beside it.
    """
    return _write(model, Path(folder), evaluation, Path(folder).resolve().name)


def push_to_hub(
    model: WorldModel, repo: str, evaluation: Evaluation = None, private: bool = False
) -> str:
    """See `WorldModel.push_to_hub`."""
    if not _names_a_repo(repo):
        raise ValueError(f"a model on the hub is called user/name, got {repo!r}.")
    hub = _library("huggingface_hub", "pushing to the hub")
    # A hub's page is not the folder that its files lie in, so that its films need a whole address.
    address = f"{hub.constants.ENDPOINT}/{repo}/resolve/main/{FILM}"
    with tempfile.TemporaryDirectory() as folder:
        return upload(_write(model, Path(folder), evaluation, repo, address), repo, private)


def _write(
    model: WorldModel, folder: Path, evaluation: Evaluation, name: str, address: str = FILM
) -> Path:
    """All files, in an order that leaves none for whole when a process is killed between; the card
    shows the film at `address`.
    """
    safetensors = _library("safetensors", "sharing a model")
    taken = [file for file in (CARD, CONFIG, FILM) if (folder / file).exists()]
    if taken and not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} has a {taken[0]} of something else; choose another folder.")
    decoder = model.decoder
    weights: dict[str, Tensor] = dict(model.state_dict())
    if decoder is not None:
        weights |= {DECODER + name: value for name, value in decoder.state_dict().items()}
    _check_finite(weights, "the model")
    parts = model.describe() | {"decoder": None if decoder is None else describe(decoder)}
    content = {"format": FORMAT, "gjwm": __version__, **parts}
    try:
        content["hash"] = _digest(content)
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the arguments and the origin of a shared model must be plain JSON: {error}."
        ) from error
    film, shown = _film(evaluation, address)
    card = model_card(model, name, _report(evaluation), shown)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, as safetensors refuses two tensors that share memory.
    weights = {name: value.cpu().contiguous().clone() for name, value in weights.items()}
    with replacing(folder / WEIGHTS) as partial:
        about = {"format": "pt", "config_hash": content["hash"]}
        # not save_file, whose error of a full disk is none of the system's
        partial.write_bytes(safetensors.torch.save(weights, metadata=about))
    if film is None:
        (folder / FILM).unlink(missing_ok=True)  # of a model that was here
    else:
        with replacing(folder / FILM) as partial:
            shutil.copyfile(film, partial)
    for file, written in ((CONFIG, text + "\n"), (CARD, card)):
        with replacing(folder / file) as partial:
            partial.write_text(written, encoding="utf-8")
    return folder


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of config.json's content but its hash, whatever the order and the white space."""
    rest = {name: value for name, value in content.items() if name != "hash"}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(plain.encode()).hexdigest()


def _check_finite(weights: Mapping[str, Tensor], source: object) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{source} has NaN or infinity in its weights {name}.")


# -- reading ---------------------------------------------------------------------------------------


def from_pretrained(source: str | Path, device: torch.device | str = "cpu") -> WorldModel:
    """See `WorldModel.from_pretrained`."""
    from gjwm.models.world_model import WorldModel

    check_device(device)
    if isinstance(source, str) and source in shipped() and not Path(source).is_dir():
        return load_shipped(source, device)
    safetensors = _library("safetensors", "a shared model")
    folder = _folder(source)
    content = _read_config(folder / CONFIG)
    weights, about = _read_weights(folder / WEIGHTS, safetensors)
    if about.get("config_hash") != content["hash"]:
        raise ValueError(f"{CONFIG} and {WEIGHTS} in {folder} are of two models; {AGAIN}.")
    _check_finite(weights, folder / WEIGHTS)
    drawn = {k.removeprefix(DECODER): v for k, v in weights.items() if k.startswith(DECODER)}
    own = {name: value for name, value in weights.items() if not name.startswith(DECODER)}
    theirs = content.get("gjwm")
    try:
        model = WorldModel.from_description(content, own, folder)
        if content.get("decoder") is not None:
            decoder = rebuild(content["decoder"], folder)
            load_weights(decoder, drawn, folder)
            model.attach_decoder(decoder.to(device).eval())
        elif drawn:
            raise ValueError(f"{folder} has weights of a decoder and does not say of which.")
    except (KeyError, TypeError, ValueError) as error:
        told = str(error) if isinstance(error, ValueError) else f"{folder} does not describe it."
        if theirs != __version__:
            told = f"{told.rstrip('.')} (gjwm {theirs} saved it and this is {__version__})."
        raise ValueError(told) from error
    if theirs != __version__:
        log.warning(f"{folder} was saved by gjwm {theirs}; it fits this version, {__version__}.")
    return model.to(device)


def _names_a_repo(source: object) -> bool:
    return (
        isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None
    )


def _folder(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or not _names_a_repo(source):
        raise FileNotFoundError(
            f"no model at {source}; expected a folder that save_pretrained wrote, user/name on the "
            f"hub, or the name of a model that ships: {nearest_shipped(str(source))}."
        )
    return download(source)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}; expected a folder that save_pretrained wrote (a "
            "run's folder is read by WorldModel.load)."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {AGAIN}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content if isinstance(content, dict) else {}
        raise ValueError(
            f"{path} has format {found.get('format')!r} (of gjwm {found.get('gjwm')}) and gjwm "
            f"{__version__} reads {FORMAT}; use the version that saved it, or save it again."
        )
    try:
        changed = content.get("hash") != _digest(content)
    except ValueError:  # NaN, which Python reads and JSON does not have
        changed = True
    if changed:
        raise ValueError(f"{path} was changed after it was saved (its hash differs); {AGAIN}.")
    return content


def _read_weights(path: Path, safetensors: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; {AGAIN}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, about
    except Exception as error:  # of Rust or torch; all mean the same
        raise ValueError(
            f"{path} is not a readable safetensors file ({type(error).__name__}); {AGAIN}."
        ) from error


# -- the hub ---------------------------------------------------------------------------------------


def download(repo: str) -> Path:
    """A copy of a hub's model, its weights and config.json alone, in the hub's own cache.

    Raises:
        OSError: when the hub does not give it.
    """
    hub = _library("huggingface_hub", f"{repo} is no folder here; fetching it from the hub")
    try:
        return Path(hub.snapshot_download(repo, allow_patterns=[WEIGHTS, CONFIG]))
    except Exception as error:  # of several libraries: no network, no such model, no permission
        raise OSError(
            f"{repo} is no folder here, and the hub does not give it: {_first_line(error)}"
        ) from error


def upload(folder: Path, repo: str, private: bool) -> str:
    """Make the hub's model `repo` what the folder holds, and return its address.

    Raises:
        ValueError: when it is public and should be private.
        OSError: when the hub refuses, or cannot be reached.
    """
    hub = _library("huggingface_hub", "pushing to the hub")
    try:
        api = hub.HfApi()
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        exposed = private and not api.repo_info(repo).private
        if not exposed:
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"Model of gjwm {__version__}",
                # that of a model that was there, where this one has none
                delete_patterns=None if (folder / FILM).exists() else FILM,
            )
    except Exception as error:
        raise OSError(
            f"{repo} was not pushed to the hub: {_first_line(error)}. Pushing takes a network and "
            "`hf auth login`, once; save_pretrained writes the same to a folder."
        ) from error
    if exposed:
        raise ValueError(f"{repo} is there and public: make it private first, or choose a new one.")
    return address


def _first_line(error: Exception) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}{f': {said[0]}' if said else ''}"


# -- the card --------------------------------------------------------------------------------------

PLAYERS = {  # who attempted the goals: key in the report -> name on the card
    "model": "**this model**",
    "oracle": "a planner on the true simulator",
    "random": "random actions",
    "hold": "standing still",
}


def _report(evaluation: Evaluation) -> Mapping[str, Any] | None:
    if evaluation is None or isinstance(evaluation, Mapping):
        return evaluation
    try:
        return json.loads(Path(evaluation).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{evaluation} is not valid JSON ({error}); evaluate again.") from error


def _film(evaluation: Evaluation, address: str) -> tuple[Path | None, str]:
    """The film of the run whose evaluation.json is given, where it has one that is small enough,
    and what the card says of it.
    """
    if evaluation is None or isinstance(evaluation, Mapping):
        return None, ""
    film = Path(evaluation).parent / "videos" / FILM
    if not film.is_file():
        return None, ""
    size = film.stat().st_size / 1e6
    if size > FILM_MB:
        said = f"The film of its attempts is left out: it has {size:.1f} MB, over {FILM_MB}."
        log.warning(f"{film}: {said} Fewer attempts make a smaller one: video.episodes=2.")
        return None, said
    said = f"Its first attempts as a film ([{FILM}]({FILM})):"
    return film, f'{said}\n\n<video controls src="{address}"></video>'


def model_card(
    model: WorldModel, name: str, report: Mapping[str, Any] | None = None, film: str = ""
) -> str:
    """README.md of a shared model, with what `gjwm.evaluate` reported of it.

    Args:
        name: of the model: user/name on the hub, or of the folder it lies in.
        film: what shows its film, in Markdown, or says why none is shown.

    Raises:
        ValueError: for a report of something else.
    """
    origin = model.origin
    where = (
        "data of unknown origin" if origin is None or not origin.env_id else f"`{origin.env_id}`"
    )
    numbers = sum(p.numel() for p in model.parameters())
    extras = {
        "calibrated intervals": model.calibration,
        "a reach": model.reach,
        "a decoder": model.decoder,
        **{f"a head `{head}`": True for head in model.heads},
    }
    has = [extra for extra, there in extras.items() if there is not None]
    try:
        judged = ["No evaluation came with it."] if report is None else _judged(report)
        limits = _limits(report)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "evaluation must be the report of gjwm.evaluate, or the file evaluation.json, and this "
            f"one does not have its figures ({type(error).__name__}: {error})."
        ) from error
    if model.calibration is None:
        limits += " Its predicted spreads are not calibrated."
    # a folder's name alone may be that of a model that ships
    source = name if _names_a_repo(name) else f"path/to/{name}"
    return "\n".join(
        [
            *("---", "library_name: gjwm", "tags:", "- world-model", "- planning", "---", ""),
            *(f"# {name}", ""),
            f"A Gaussian joint-embedding world model of {where}: {type(model.encoder).__name__} to "
            f"{model.latent_dim} latents, {type(model.dynamics).__name__} for {model.action_dim} "
            f"actions, {numbers:,} parameters{'; with ' * bool(has)}{', '.join(has)}. Its parts "
            "and the recipe of its training are in `config.json`.",
            *("", "```python", "import gjwm", ""),
            f'model = gjwm.WorldModel.from_pretrained("{source}")',
            *("agent = gjwm.MPCAgent(model, goal=goal)  # an observation of the goal", "```", ""),
            *("## How it was judged", "", *judged, ""),
            *((film, "") if film else ()),
            *("## Limits", "", limits, ""),
        ]
    )


def _judged(report: Mapping[str, Any]) -> list[str]:
    """Protocol, success beside its floors, prediction."""
    planning, prediction = report["planning"], report["prediction"]
    protocol, ahead = planning["protocol"], prediction["horizon"]
    goals = "that the world draws"
    if protocol["goals"] == "ahead":
        goals = f"{protocol['goal_offset']} steps ahead in held-out episodes"
    rows = {who: planning if who == "model" else planning.get(who) for who in PLAYERS}
    return [
        f"{planning['episodes']} attempts at goals {goals}. A goal is reached within "
        f"{protocol['success_radius']:g} of it at any of {protocol['steps']} steps. Plans reach "
        f"{protocol['horizon']} steps ahead and are made anew every {protocol['replan_every']}, by "
        f"{protocol['cost']}.",
        "",
        "| | success | 95% interval |",
        "|---|---|---|",
        *[
            f"| {name} | {row['success_rate']:.1%} | {row['ci95'][0]:.1%} to {row['ci95'][1]:.1%} |"
            for name, row in ((PLAYERS[who], row) for who, row in rows.items())
            if row is not None
        ],
        "",
        f"Open-loop predictions {ahead} steps ahead explain {prediction['r2_by_horizon'][-1]:.3f} "
        "of the latents' variance (R²), repeating the present latent "
        f"{prediction['copy_last_r2_by_horizon'][-1]:.3f}.",
    ]


def _limits(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "Nothing is known of how well it predicts or plans: judge it with `gjwm.evaluate`."
    planning = report["planning"]
    floors = {PLAYERS[who]: planning[who]["ci95"][1] for who in ("random", "hold")}
    met = [name for name, high in floors.items() if planning["ci95"][0] <= high]
    shown = (
        f"That it plans better than {' and '.join(met)} is not shown: the intervals overlap."
        if met
        else f"Its interval lies above those of {' and '.join(floors)}."
    )
    return (
        f"{shown} The intervals are those of {planning['episodes']} goals of one trained model; "
        "another training seed may do better or worse than they say. Other worlds, other pictures "
        "and goals further away were not tried, and nothing was tried on a real machine."
    )
