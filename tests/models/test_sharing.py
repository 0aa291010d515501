"""Claims about shared models: what is written comes back exactly, damage is one sentence, and the
hub is asked for what it should be asked for.
"""

import builtins
import errno
import json
import re
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch

from gjwm._core.configured import describe
from gjwm.models import ConvEncoder, GaussianDynamics, MLPEncoder, Reach, RewardHead, sharing
from gjwm.models.calibration import Calibration
from gjwm.models.decoder import ConvDecoder
from gjwm.models.pretrained import shipped
from gjwm.models.world_model import Origin, WorldModel

safetensors = pytest.importorskip("safetensors.torch")


def small():
    torch.manual_seed(0)
    dynamics = GaussianDynamics(4, 2, hidden=8, std_hidden=4)
    model = WorldModel(MLPEncoder((3,), 4, hidden=(8,)), dynamics)
    model.origin = Origin(env_id="gjwm/two-room-v0", env_kwargs={"size": 2}, recipe={"seed": 3})
    return model.eval()


def whole():
    """A model with all that may be attached to one, its weights drawn anew."""
    torch.manual_seed(0)
    dynamics = GaussianDynamics(4, 2, hidden=8, std_hidden=4)
    encoder = ConvEncoder((3, 16, 16), 4, channels=(4, 4), hidden=8)
    model = WorldModel(encoder, dynamics, {"reward": RewardHead(4, 2, hidden=(8,))})
    model.calibration = Calibration([1.1, 1.2], [0.3, 0.1, 0.2], 1.7)
    model.reach = Reach(4, 3, hidden=(8,))
    model.attach_decoder(ConvDecoder(4, (3, 16, 16), channels=4).eval())
    with torch.no_grad():
        for part in (model, model.decoder):
            for weight in part.parameters():
                weight.normal_()
    return model.eval()


def report(success=0.97, interval=(0.91, 0.99)):
    """What a card is made from, of `gjwm.evaluate`'s report."""
    floors = {"random": (0.12, (0.07, 0.2)), "hold": (0.05, (0.02, 0.11)), "oracle": (1, (0.96, 1))}
    planning = {k: {"success_rate": s, "ci95": list(i)} for k, (s, i) in floors.items()}
    planning |= {"success_rate": success, "ci95": list(interval), "episodes": 100}
    planning["protocol"] = {
        **{"goals": "ahead", "goal_offset": 24, "steps": 40, "success_radius": 0.15},
        **{"horizon": 12, "replan_every": 4, "cost": "GoalCost"},
    }
    prediction = {"horizon": 12, "r2_by_horizon": [0.99, 0.963], "copy_last_r2_by_horizon": [0, -1]}
    return {"planning": planning, "prediction": prediction}


def edit(folder, change):
    """Change config.json, and its hash and that of the weights with it."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    content["hash"] = sharing._digest(content)
    file.write_text(json.dumps(content))
    rewrite(folder, lambda weights: None, content["hash"])


def rewrite(folder, change, digest=None):
    """Change the weights, of the same hash or another."""
    file = folder / "model.safetensors"
    digest = digest or json.loads((folder / "config.json").read_text())["hash"]
    weights = safetensors.load_file(file)
    change(weights)
    safetensors.save_file(weights, file, metadata={"config_hash": digest})


# -- folders ---------------------------------------------------------------------------------------


def test_a_model_comes_back_from_a_folder_exactly(tmp_path):
    model = whole()
    folder = model.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in folder.iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]
    again = WorldModel.from_pretrained(str(folder))
    assert again.describe() == model.describe() and not again.training
    assert describe(again.decoder) == describe(model.decoder) and not again.decoder.training
    for ours, theirs in ((model, again), (model.decoder, again.decoder)):
        ours, theirs = ours.state_dict(), theirs.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        assert all(ours[k].dtype == theirs[k].dtype for k in ours)
    plain = small()
    plain.save_pretrained(folder)  # the model that was there is replaced
    again = WorldModel.from_pretrained(folder)
    assert again.origin == plain.origin and again.decoder is None and again.calibration is None


def test_a_folder_needs_no_network_and_no_hub_and_what_is_missing_is_named(tmp_path, monkeypatch):
    folder, real = small().save_pretrained(tmp_path / "m"), builtins.__import__
    missing = {"huggingface_hub"}

    def without(name, *args, **kwargs):
        if name.partition(".")[0] in missing:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    WorldModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    with pytest.raises(ImportError, match=r"needs huggingface_hub: pip install 'gjwm\[hub\]'\.$"):
        small().push_to_hub("me/small")
    with pytest.raises(ImportError, match=r"me/small is no folder here; .* 'gjwm\[hub\]'\.$"):
        WorldModel.from_pretrained("me/small")
    missing.add("safetensors")
    for use in (lambda: WorldModel.from_pretrained(folder), lambda: small().save_pretrained("x")):
        with pytest.raises(ImportError, match=r"needs safetensors: pip install 'gjwm\[hub\]'\.$"):
            use()


def test_weights_that_are_no_numbers_and_files_of_others_are_left_alone(tmp_path):
    model = small()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"has a README\.md of something else"):
        model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    model.dynamics.from_latent.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in its weights dynamics\.from_latent\."):
        model.save_pretrained(tmp_path / "m")
    model = small()
    model.origin = Origin(env_id="x", env_kwargs={"goal": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"must be plain JSON: .*Tensor"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def drop(weights):
    del weights["dynamics.from_latent.weight"]


CHANGES = {
    "NaN": (lambda w: w["dynamics.from_latent.weight"].fill_(torch.nan), "NaN or infinity in its"),
    "missing": (drop, "lacks weights of the model that it describes: dynamics.from_latent.weight"),
    "extra": (lambda w: w.update(more=torch.ones(1)), "has weights that its model does not: more"),
    "decoder": (lambda w: w.update({"decoder.x": torch.ones(1)}), "does not say of which"),
    "shape": (
        lambda w: w.update({"dynamics.from_latent.weight": torch.ones(2)}),
        r"another shape than its model's: dynamics\.from_latent\.weight is \(2,\) instead of \(",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_fit_are_one_sentence(change, tmp_path):
    folder = small().save_pretrained(tmp_path / "m")
    rewrite(folder, CHANGES[change][0])
    with pytest.raises(ValueError, match=CHANGES[change][1]) as told:
        WorldModel.from_pretrained(folder)
    assert str(folder) in str(told.value) and len(str(told.value).splitlines()) == 1


def test_a_disk_that_is_full_is_an_error_of_the_disk_and_leaves_the_model_before(
    tmp_path, largest_file
):
    model = small()
    model.save_pretrained(tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with largest_file(512), pytest.raises(OSError, match=r"model\.safetensors") as caught:
        model.save_pretrained(tmp_path)
    assert caught.value.errno == errno.EFBIG
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_damaged_files_are_one_sentence(tmp_path):
    folder = small().save_pretrained(tmp_path / "m")
    config, weights = folder / "config.json", folder / "model.safetensors"
    text, data = config.read_text(), weights.read_bytes()
    for content, match in (
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", r"has format None \(of gjwm None\) and gjwm .* reads 2"),
        (text.replace('"format": 2', '"format": 3'), r"has format 3 \(of gjwm .*\) and gjwm"),
        (text.replace('"seed": 3', '"seed": 4'), r"was changed after it was saved \(its hash"),
        (text.replace('"seed": 3', '"seed": NaN'), r"was changed after it was saved \(its hash"),
    ):
        config.write_text(content)
        with pytest.raises(ValueError, match=match):
            WorldModel.from_pretrained(folder)
    config.write_text(json.dumps(json.loads(text)))  # white space is no change
    WorldModel.from_pretrained(folder)
    for content in (data[:-3], data[:4], b"", b"\xff" * 64, b"x" * 1000):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a readable safetensors file"):
            WorldModel.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        WorldModel.from_pretrained(folder)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; .* WorldModel\.load"):
        WorldModel.from_pretrained(folder)
    for absent in (tmp_path / "absent", "absent", "a/b/c", "../m/x/y", "/a/b"):
        with pytest.raises(FileNotFoundError, match=r"no model at .*; expected a folder"):
            WorldModel.from_pretrained(absent)


def test_a_file_of_another_version_or_another_model_says_so(tmp_path, caplog):
    folder = small().save_pretrained(tmp_path / "m")
    edit(folder, lambda content: content.update(gjwm="99.1"))
    WorldModel.from_pretrained(folder)
    assert "was saved by gjwm 99.1; it fits this version" in caplog.text
    edit(folder, lambda content: content["dynamics"].update({"class": "gjwm.models:Future"}))
    with pytest.raises(
        ValueError, match=r"does not have \(gjwm 99\.1 saved it and this is .*\)\.$"
    ):
        WorldModel.from_pretrained(folder)
    small().save_pretrained(folder)
    other = small()
    other.origin = None
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").replace(folder / "config.json")
    with pytest.raises(ValueError, match=r"config\.json and model\.safetensors .* of two models"):
        WorldModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "torch.nn:Linear"])
@pytest.mark.parametrize("part", ["encoder", "dynamics", "reach", "decoder"])
def test_a_description_runs_nothing(name, part, tmp_path):
    folder = small().save_pretrained(tmp_path / "m")
    mark = tmp_path / "ran"
    evil = {"class": name, "config": {"command": f"touch {mark}", "args": ["touch", str(mark)]}}
    edit(folder, lambda content: content.update({part: evil}))
    with pytest.raises(ValueError, match=f"m names {name}, which is no class of gjwm"):
        WorldModel.from_pretrained(folder)
    assert not mark.exists()


# -- the card --------------------------------------------------------------------------------------


def test_the_card_has_protocol_success_floors_and_limits(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(report()))
    folder = small().save_pretrained(tmp_path / "m", evaluation=tmp_path / "evaluation.json")
    card = (folder / "README.md").read_text()
    assert card == sharing.model_card(small(), "m", report())
    for said in (
        "library_name: gjwm",
        "`gjwm/two-room-v0`",
        "100 attempts at goals 24 steps ahead in held-out episodes",
        "| **this model** | 97.0% | 91.0% to 99.0% |",
        "| a planner on the true simulator | 100.0% | 96.0% to 100.0% |",
        "| random actions | 12.0% | 7.0% to 20.0% |",
        "| standing still | 5.0% | 2.0% to 11.0% |",
        "12 steps ahead explain 0.963",
        "Its interval lies above those of random actions and standing still.",
        "another training seed may do better or worse",
        "not calibrated",
    ):
        assert said in card
    assert str(tmp_path) not in card + (folder / "config.json").read_text()


def test_a_card_in_a_folder_loads_that_folder_and_no_model_that_ships(tmp_path):
    folder = small().save_pretrained(tmp_path / "two-room")
    card = (folder / "README.md").read_text()
    assert "# two-room" in card and "two-room" in shipped()
    assert 'from_pretrained("path/to/two-room")' in card
    with pytest.raises(FileNotFoundError):  # until a reader puts the folder's own path there
        WorldModel.from_pretrained("path/to/two-room")
    assert 'from_pretrained("me/two-room")' in sharing.model_card(small(), "me/two-room")


def run_with_a_film(run, size=3000):
    """What is left of a run that was evaluated and filmed -> its evaluation.json, the film."""
    film = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (run / "videos").mkdir(parents=True)
    (run / "videos/goals.mp4").write_bytes(film)
    (run / "evaluation.json").write_text(json.dumps(report()))
    return run / "evaluation.json", film


def test_the_card_shows_the_film_of_the_run(tmp_path):
    evaluation, film = run_with_a_film(tmp_path / "run")
    folder = small().save_pretrained(tmp_path / "m", evaluation=evaluation)
    assert (folder / "goals.mp4").read_bytes() == film
    card = (folder / "README.md").read_text()
    assert '<video controls src="goals.mp4"></video>' in card and "](goals.mp4)" in card
    assert card.index("How it was judged") < card.index("<video") < card.index("## Limits")
    assert str(tmp_path) not in card
    WorldModel.from_pretrained(folder)
    small().save_pretrained(folder, evaluation=report())  # another model, of no film
    assert not (folder / "goals.mp4").exists()
    assert "goals.mp4" not in (folder / "README.md").read_text()


def test_a_large_film_is_left_out_with_a_sentence(tmp_path, caplog):
    for size, shown in ((5_000_000, True), (5_100_000, False)):
        evaluation, _ = run_with_a_film(tmp_path / f"run-{size}", size)
        folder = small().save_pretrained(tmp_path / f"m-{size}", evaluation=evaluation)
        said = "The film of its attempts is left out: it has 5.1 MB, over 5."
        card = (folder / "README.md").read_text()
        assert (folder / "goals.mp4").exists() == ("<video" in card) == shown
        assert (said in card) == (said in caplog.text) == (not shown)


def test_a_film_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "goals.mp4").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"has a goals\.mp4 of something else"):
        small().save_pretrained(tmp_path)
    assert (tmp_path / "goals.mp4").read_bytes() == b"mine"


def test_the_card_claims_no_more_than_was_measured():
    weak = sharing.model_card(small(), "m", report(0.15, (0.09, 0.23)))
    assert "That it plans better than random actions and standing still is not shown" in weak
    between = sharing.model_card(small(), "m", report(0.2, (0.13, 0.29)))
    assert "That it plans better than random actions is not shown" in between
    nothing = sharing.model_card(whole(), "m")
    assert "Nothing is known of how well it predicts or plans" in nothing and "%" not in nothing
    assert "a decoder" in nothing and "not calibrated" not in nothing
    for wrong in ({}, {"planning": 3}, {"planning": {}, "prediction": {}}):
        with pytest.raises(ValueError, match=r"evaluation must be the report of gjwm\.evaluate"):
            sharing.model_card(small(), "m", wrong)


# -- the hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that is a folder; calls that the real one would not take are refused."""
    real = pytest.importorskip("huggingface_hub")
    home, public = tmp_path / "hub", set()
    api = create_autospec(real.HfApi, instance=True)

    def create_repo(repo_id, *, private=False, exist_ok=False):
        if not private:
            public.add(repo_id)
        return f"hub:{repo_id}"

    def upload_folder(*, repo_id, folder_path, commit_message, delete_patterns):
        (home / repo_id).mkdir(parents=True, exist_ok=True)
        for old in (home / repo_id).glob(delete_patterns or "no file"):
            old.unlink()
        for file in folder_path.iterdir():
            (home / repo_id / file.name).write_bytes(file.read_bytes())

    def snapshot_download(repo_id, *, allow_patterns):
        if not (home / repo_id).is_dir():
            raise real.errors.RepositoryNotFoundError(
                f"\n\n404 for {repo_id}.\nMore lines.", response=create_autospec_response()
            )
        assert sorted(allow_patterns) == ["config.json", "model.safetensors"]
        return str(home / repo_id)

    def create_autospec_response():
        return SimpleNamespace(headers={}, request=None)

    api.create_repo.side_effect = create_repo
    api.upload_folder.side_effect = upload_folder
    api.repo_info.side_effect = lambda repo_id: SimpleNamespace(private=repo_id not in public)
    monkeypatch.setattr(real, "HfApi", lambda: api)
    download = create_autospec(real.snapshot_download, side_effect=snapshot_download)
    monkeypatch.setattr(real, "snapshot_download", download)
    return SimpleNamespace(api=api, home=home, download=download)


def test_a_pushed_model_is_pulled_exactly(hub):
    model = whole()
    assert model.push_to_hub("me/whole", evaluation=report()) == "hub:me/whole"
    assert hub.api.create_repo.call_args.kwargs == {"private": False, "exist_ok": True}
    card = (hub.home / "me/whole/README.md").read_text()
    assert "# me/whole" in card and 'from_pretrained("me/whole")' in card and "97.0%" in card
    again = WorldModel.from_pretrained("me/whole")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_pushed_card_shows_its_film_and_the_next_model_takes_it_away(hub, tmp_path):
    evaluation, film = run_with_a_film(tmp_path / "run")
    small().push_to_hub("me/filmed", evaluation=evaluation)
    there = hub.home / "me/filmed"
    assert (there / "goals.mp4").read_bytes() == film
    shown = re.search('<video controls src="(.*)"></video>', (there / "README.md").read_text())
    assert shown and shown[1].startswith("https://")
    assert shown[1].endswith("/me/filmed/resolve/main/goals.mp4")
    WorldModel.from_pretrained("me/filmed")  # asks for weights and config.json alone
    small().push_to_hub("me/filmed", evaluation=report())
    assert sorted(file.name for file in there.iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]


def test_what_should_be_private_is_never_made_public(hub):
    small().push_to_hub("me/open")
    hub.api.upload_folder.reset_mock()
    with pytest.raises(ValueError, match="me/open is there and public: make it private first"):
        small().push_to_hub("me/open", private=True)
    assert not hub.api.upload_folder.called
    small().push_to_hub("me/closed", private=True)
    assert hub.api.upload_folder.called


def test_what_the_hub_refuses_is_one_sentence(hub, tmp_path, monkeypatch):
    with pytest.raises(
        OSError, match=r"me/absent is no folder here, .*: \w+: 404 for me/absent\.$"
    ):
        WorldModel.from_pretrained("me/absent")
    hub.api.create_repo.side_effect = RuntimeError("401\nlog in first")
    refused = (
        r"^me/small was not pushed to the hub: RuntimeError: 401\. Pushing takes a network and "
        r"`hf auth login`, once; save_pretrained writes the same to a folder\.$"
    )
    with pytest.raises(OSError, match=refused):
        small().push_to_hub("me/small")
    for name in ("small", "a/b/c", "../x", "me/", ""):
        with pytest.raises(ValueError, match="is called user/name"):
            small().push_to_hub(name)
    monkeypatch.chdir(tmp_path)
    small().save_pretrained("me/here")  # a folder that is here comes first
    hub.download.reset_mock()
    WorldModel.from_pretrained("me/here")
    assert not hub.download.called
