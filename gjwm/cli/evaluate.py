"""`gjwm evaluate` and `gjwm report`: a run judged on episodes it never saw, and its page."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gjwm import __version__
from gjwm._core.machine import cores
from gjwm.cli.config import behaviour_of, env_kwargs, factory, fill, import_parts
from gjwm.evaluation import Details, Evaluation, evaluate, held_out_episodes
from gjwm.evaluation.evaluate import Task
from gjwm.evaluation.goals import check_cost
from gjwm.evaluation.verdict import judge
from gjwm.models.decoder import decoder_of
from gjwm.models.world_model import WorldModel, load_payload
from gjwm.reporting import ARRAYS, EVALUATION, GALLERY, save_arrays, write_report
from gjwm.reporting.films import films_of, gallery
from gjwm.reporting.logging import log_results
from gjwm.training.run import write_json


def evaluate_command(cfg: DictConfig, command: str) -> None:
    """Write evaluation.json, the curves and films that go with it, and report.html into
    cfg.run_dir.
    """
    run = Path(cfg.run_dir)
    settings, task = evaluation_settings(cfg), task_of(cfg)
    import_parts(cfg)
    planner = instantiate(cfg.planner)
    # what cannot work is told before episodes are collected
    task.goals(settings, planner)
    model = WorldModel.load(run / "checkpoint.pt", cfg.device)
    task.require_fit(model)
    cost = factory(cfg.cost, "cost")
    check_cost(cost, model.latent_dim, model.reach is not None)
    print("collecting held-out episodes", flush=True)
    episodes = held_out_episodes(task, settings, workers=cfg.collect.workers, notify=print)
    details = Details()
    report = evaluate(
        model,
        settings,
        env_id=task.env_id,
        env_kwargs=task.env_kwargs,
        episodes=episodes,
        planner=planner,
        cost=cost,
        notify=lambda message: print(message, flush=True),
        details=details,
    )
    if cfg.report.worst + cfg.report.typical:
        print("filming attempts", flush=True)
        try:
            films = films_of(
                model,
                task,
                details,
                decoder=decoder_of(run, cfg.device),
                position=details.readouts["position"],
                seed=settings.seed,
            )
        except ValueError as error:
            # what was measured is worth more than its pictures
            print(f"no films: {error}", file=sys.stderr)
        else:
            shown = dict(worst=cfg.report.worst, typical=cfg.report.typical, fps=cfg.video.fps)
            report["gallery"] = gallery(run / GALLERY, films, **shown)
    # a model saved by hand says nothing of its training
    report["training"] = load_payload(run / "checkpoint.pt")["extra"].get("training", {})
    report["version"], report["command"] = __version__, command
    report["evaluated"] = time.strftime("%Y-%m-%d %H:%M")
    report["versions"] = _versions()
    report["config"] = OmegaConf.to_container(cfg, resolve=True)
    save_arrays(run / ARRAYS, details.arrays)
    page = write_report(run, report)
    write_json(run / EVALUATION, report)  # last: a run that has it is done
    print(summary(report))
    print("\n".join(judge(report).lines))
    print(run / EVALUATION)
    print(page)
    if cfg.logger.wandb != "disabled":
        films_shown = {
            f"{row['kind']}/{row['attempt']}": run / GALLERY / row["file"]
            for row in report.get("gallery", [])
        }
        log_results(
            run,
            wandb_mode=cfg.logger.wandb,
            project=cfg.logger.project,
            group=cfg.name,
            job="evaluate",
            results=report,
            videos=films_shown,
        )


def report_command(cfg: DictConfig, command: str) -> None:
    """Draw cfg.run_dir/report.html again from what an evaluation left there: no model, data or
    world is needed.
    """
    print(write_report(cfg.run_dir))


def task_of(cfg: DictConfig) -> Task:
    """The environment and the behaviour of cfg."""
    return Task(cfg.env.id, env_kwargs(cfg), behaviour_of(cfg))


def evaluation_settings(cfg: DictConfig) -> Evaluation:
    """cfg.evaluate, checked."""
    return fill(Evaluation, cfg.evaluate, "evaluate")


def summary(report: dict[str, Any]) -> str:
    """The report's headline figures, a few lines for people."""
    p, g, c, s = (
        report["prediction"],
        report["gaussianity"],
        report["calibration"],
        report["planning"],
    )
    lines = [
        f"prediction   R2 at {p['horizon']} steps {p['r2_by_horizon'][-1]:.3f} (copy-last "
        f"{p['copy_last_r2_by_horizon'][-1]:.3f}), skill {p['skill_nats_per_dim']:.2f} nats/dim "
        f"(copy-last {p['skill_copy_last_nats_per_dim']:.2f}), rank accuracy "
        f"{p['rank_accuracy']:.3f}",
        f"probe R2     linear {report['probe']['linear_r2']:.3f}, kNN "
        f"{report['probe']['knn_r2']:.3f}, MLP {report['probe']['mlp_r2']:.3f}",
        f"gaussianity  effective rank {g['effective_rank']:.1f} (ideal "
        f"{g['effective_rank_ideal']:.1f}), Epps-Pulley {g['epps_pulley']:.2f} (ideal "
        f"{g['epps_pulley_null']:.2f}), variance {p['variance_per_dim']:.3f} (ideal 1)",
        f"calibration  50/80/90/95% intervals cover {c['coverage_50']:.2f} {c['coverage_80']:.2f} "
        f"{c['coverage_90']:.2f} {c['coverage_95']:.2f}, ECE {c['ece']:.3f}",
    ]
    if "surprise" in report:
        v = report["surprise"]
        lines.append(
            f"surprise     AUROC teleport {v['teleport']['auroc']:.3f}, colour "
            f"{v['colour']['auroc']:.3f}, frozen {v['frozen']['auroc']:.3f}; false alarms "
            f"{v['false_alarm_rate']:.2%} at {v['level']:.0%}"
        )
    for name in ("model", "random", "hold", "oracle"):
        row = s if name == "model" else s.get(name)
        if row is not None:
            low, high = row["ci95"]
            lines.append(
                f"planning     {name:7s} success {row['success_rate']:.1%} [{low:.1%}, {high:.1%}] "
                f"of {row['episodes']}, {1e3 * row['seconds_per_step']:.1f} ms per step"
            )
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "gymnasium", "mujoco", "dm-control")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
    }
