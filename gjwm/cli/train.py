"""`gjwm train`: a world model from a dataset, calibrated, and a decoder for its pictures."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm import __version__
from gjwm._core.files import replacing
from gjwm.cli.config import (
    CALIBRATION,
    behaviour_of,
    check_refine_dynamics,
    dynamics_of,
    env_kwargs,
    heads_of,
    keyword_arguments,
    residence_of,
)
from gjwm.cli.run_folder import begin, check_kept, logging_into, require_same_env, save_decoder
from gjwm.data.collect import collect_episodes
from gjwm.data.dataset import DiskWindows, episode_lengths, open_windows, read_episodes
from gjwm.evaluation.evaluate import check_equal_length, encode_episodes
from gjwm.models.decoder import ConvDecoder
from gjwm.models.world_model import WorldModel
from gjwm.objectives import make_objective
from gjwm.reporting.logging import progress
from gjwm.training.checkpoint import Checkpoints
from gjwm.training.train import (
    check_pairs,
    check_refining,
    encode_dataset,
    peak_memory_mb,
    refine,
    train,
    train_decoder,
)


def train_command(cfg: DictConfig, command: str) -> None:
    """Train a world model on cfg.dataset into cfg.run_dir, then a decoder for pictures; with
    cfg.resume go on.
    """
    run = Path(cfg.run_dir)
    check_refine_dynamics(cfg)
    require_same_env(cfg, cfg.dataset)
    decoder_steps = cfg.train.decoder_steps
    own = OmegaConf.masked_copy(cfg.train, [k for k in cfg.train if k != "decoder_steps"])
    options = keyword_arguments("train", own, train, besides=["decoder_steps"])
    # Whole and resolved first: the references of a part could not be.
    whole = OmegaConf.create(OmegaConf.to_container(cfg.refine, resolve=True))
    own = OmegaConf.masked_copy(whole, [k for k in whole if k != "dynamics"])
    refining = keyword_arguments("refine", own, refine, besides=["dynamics"])
    if refining["steps"]:
        check_refining(**refining)
    if cfg.calibrate.horizon < 1 or cfg.calibrate.episodes < 0:
        raise ValueError(
            "expected calibrate.horizon >= 1 and calibrate.episodes >= 0, got "
            f"{cfg.calibrate.horizon} and {cfg.calibrate.episodes}."
        )
    check_kept(cfg)
    checkpoints = Checkpoints(run / "state")
    resolved = OmegaConf.to_container(cfg, resolve=True)
    lengths = episode_lengths(cfg.dataset)

    def ready(episodes: int) -> None:
        longest = max(lengths[:episodes], default=0)
        if refining["steps"] and 0 < longest < refining["length"]:
            raise ValueError(
                f"refine.length={refining['length']} is longer than the longest episode of "
                f"{cfg.dataset}, {longest} steps; shorten the windows, or collect longer episodes."
            )

    # Before anything in the run's folder is touched.
    own = OmegaConf.masked_copy(cfg.objective, [k for k in cfg.objective if k != "lam"])
    asked = keyword_arguments("objective", own, make_objective, besides=["lam"])
    objective = make_objective(instantiate(cfg.discrepancy), cfg.objective.lam, **asked)
    check_pairs(objective, options["batch"], options.get("episodes"))
    begun = begin(cfg, run, checkpoints, cfg.train.steps, "checkpoint.pt", ready)
    if begun is None:
        print(f"{run}: already trained, nothing to resume")
        return
    after, episodes = begun
    buffer = open_windows(
        cfg.dataset,
        residence_of(cfg),
        storage=cfg.storage,
        episodes=episodes,
        notify=print,
    )
    shape = buffer.observation_space.shape
    model = WorldModel(
        instantiate(cfg.encoder, observation_shape=list(shape)),
        dynamics_of(cfg, cfg.dynamics, buffer.action_space.shape[0]),
        heads_of(cfg, buffer.action_space.shape[0]),
    ).to(cfg.device)
    # made here and not after training: its first weights depend on the seed and on what is made
    # before it
    fresh = None
    if cfg.refine.dynamics is not None:
        fresh = dynamics_of(cfg, cfg.refine.dynamics, buffer.action_space.shape[0]).to(cfg.device)
    generator = torch.Generator(cfg.device).manual_seed(cfg.seed)
    decodes = bool(decoder_steps) and len(shape) == 3
    total = options["steps"] + refining["steps"] + decoder_steps * decodes
    with logging_into(cfg, total, after) as (logger, live):
        with progress(options["steps"], desc="train") as bar:

            def log(scalars: dict[str, float], step: int) -> None:
                logger.log(scalars, step)
                live.update(step)
                bar.report(
                    step, loss=scalars["loss"], frames_per_second=scalars["frames_per_second"]
                )

            try:
                train(
                    model,
                    objective,
                    buffer,
                    log=log,
                    log_every=cfg.logger.every,
                    generator=generator,
                    prefetch=2 if isinstance(buffer, DiskWindows) else 0,
                    checkpoints=checkpoints,
                    checkpoint_every=cfg.checkpoint.every,
                    **options,
                )
            except FloatingPointError:
                checkpoints.clear()  # going on would end the same way
                raise
            seconds = checkpoints.latest().content["seconds"]
        after_refining, refined = options["steps"] + refining["steps"], {}
        if refining["steps"]:
            since = time.perf_counter()
            with progress(refining["steps"], desc="refine") as bar:

                def log_refining(scalars: dict[str, float], step: int) -> None:
                    logger.log(scalars, options["steps"] + step)
                    live.update(options["steps"] + step)
                    bar.report(step, loss=scalars["refine/mean_squared_error"])

                stored = itertools.islice(read_episodes(cfg.dataset), episodes)
                latents = encode_dataset(
                    model,
                    stored,
                    steps=sum(lengths[:episodes]),
                    count=episodes,
                )
                if fresh is not None:
                    model.dynamics = fresh
                    print(
                        f"refining trains {type(fresh).__name__} from the start (refine.dynamics)",
                        flush=True,
                    )
                refine(
                    model.dynamics,
                    latents,
                    log=log_refining,
                    log_every=cfg.logger.every,
                    generator=generator,
                    **refining,
                )
            refined = {"refine_seconds": time.perf_counter() - since}
        training = {
            "seconds": seconds,
            **refined,
            "threads": torch.get_num_threads(),
            "peak_memory_mb": peak_memory_mb(model.device),
            "command": command,
        }
        extra = {"version": __version__, "config": resolved, "training": training}
        # What describes the run changes together with its model, and only now: a failed training
        # leaves an older run whole.
        model.save(run / "checkpoint.pt", **extra)
        with replacing(run / "config.yaml") as partial:
            OmegaConf.save(OmegaConf.create(resolved), partial)
        if cfg.calibrate.episodes:
            print("calibrating predictions on held-out episodes", flush=True)
            calibrate_model(model, cfg)
            model.save(run / "checkpoint.pt", **extra)
        if decodes:
            channels = shape[0] // cfg.env.get("frame_stack", 1)
            decoder = ConvDecoder(model.latent_dim, (channels, *shape[1:])).to(cfg.device)
            with progress(decoder_steps, desc="decoder") as bar:

                def log_decoder(scalars: dict[str, float], step: int) -> None:
                    logger.log(scalars, after_refining + step)
                    live.update(after_refining + step)
                    bar.report(step, loss=scalars["decoder/squared_error"])

                train_decoder(
                    decoder,
                    model,
                    buffer,
                    steps=decoder_steps,
                    log=log_decoder,
                    log_every=cfg.logger.every,
                    generator=generator,
                )
            save_decoder(decoder, run / "decoder.pt")
        live.finish(total)
    print(f"{run}: checkpoint.pt, metrics.jsonl")


def calibrate_model(model: WorldModel, cfg: DictConfig) -> None:
    """Fit the factors on predicted spreads, and the scale of surprise, on episodes that neither
    training nor evaluation see.
    """
    episodes = collect_episodes(
        cfg.env.id,
        env_kwargs(cfg),
        behaviour_of(cfg),
        episodes=cfg.calibrate.episodes,
        length=cfg.evaluate.length,
        seed=CALIBRATION + cfg.seed,
        workers=cfg.collect.workers,
    )
    episodes = list(episodes)
    check_equal_length(episodes)
    latents, actions = [], []
    for episode in episodes:
        latents.append(encode_episodes(model, [episode])[0])
        actions.append(torch.from_numpy(episode.a).to(cfg.device))
    model.calibrate(
        torch.stack(latents),
        torch.stack(actions),
        horizon=min(cfg.calibrate.horizon, cfg.evaluate.length),
        particles=cfg.calibrate.particles,
        generator=torch.Generator(cfg.device).manual_seed(cfg.seed),
    )
