"""Running the stages; training itself is tested in `tests/train`."""

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.data.decoded import ClipSpec
from mfm_jax.foley.recipes.listener import foley_listener
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.runtime.config import override
from mfm_jax.storage.paths import TINY_BUNDLE
from miniature.stages import (
    BASE,
    HARD,
    HARD_FAST,
    Stage,
    StageError,
    command,
    copy_sound_networks,
    pack,
    record_completion,
    run_stages,
    summary,
    write_report,
)
from tests.bundles import untrained_component

ROOT = Path(__file__).parents[2]
SPEC = ClipSpec.tiny()
CONFIG = {"log_every": 20, "steps": 40}
LINES = (
    {"step": 0, "heldout_loss": 3.0},
    {"step": 20, "loss": 2.0, "seconds": 0.5},
    {"step": 40, "loss": 1.0, "seconds": 1.0},
    {"step": 40, "heldout_loss": 1.25, "heldout_loa_error": 0.5},
)


def trained(folder: Path) -> None:
    """Write the files of a finished run."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))


@pytest.mark.parametrize("stages", [BASE, HARD, HARD_FAST], ids=["base", "hard", "hard_fast"])
def test_every_stage_has_a_config_and_comes_after_what_it_needs(stages):
    names = [stage.name for stage in stages]
    for stage in stages:
        assert (ROOT / "configs" / f"{stage.config}.py").is_file()
        assert set(stage.needs) <= set(names[: names.index(stage.name)])


def test_a_command_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command(tmp_path / "runs" / "tiny", BASE[0])
    assert words[:6] == [
        "mfm", "train", "--config", "tiny_audiomae", "--workdir", "runs/tiny/audiomae",
    ]  # fmt: skip
    overrides = words[words.index("--set") + 1 :]
    assert overrides == ["recipe.bundle=runs/tiny/bundle", "recipe.source.folder=runs/tiny"]
    assert str(tmp_path) not in " ".join(words)


def test_the_fast_hard_grade_differs_in_what_cavp_sees():
    recipes = {}
    for stages in (HARD, HARD_FAST):
        for stage in stages[:2]:
            config = runpy.run_path(str(ROOT / "configs" / f"{stage.config}.py"))["get_config"]()
            config = override(config, [f"recipe.{change}" for change in stage.overrides])
            recipes[stages, stage.name] = config.recipe
    assert {recipes[HARD_FAST, name].spec for name in ("cavp", "timechat")} == {SPEC}
    assert {recipes[HARD, name].spec for name in ("cavp", "timechat")} == {
        replace(SPEC, cavp_fps=4.0)
    }
    assert recipes[HARD, "timechat"].network == recipes[HARD_FAST, "timechat"].network
    words = command(ROOT / "runs" / "hard_fast", HARD_FAST[1])
    assert words[-1] == "recipe.spec.cavp_fps=12.5"


def test_the_hard_grade_keeps_the_sound_of_one_base_bundle(tmp_path):
    bundle = tmp_path / "hard" / "bundle"
    copy_sound_networks(TINY_BUNDLE, bundle)
    cavp = CAVPConfig.tiny_slow()
    with pytest.warns(UserWarning, match="adapter is left out"):
        write_bundle(bundle, {"cavp": untrained_component("cavp", cavp, 1)})
    copy_sound_networks(TINY_BUNDLE, bundle)  # its encoders may differ
    assert Bundle.open(bundle).config("cavp") == cavp
    write_bundle(bundle, {"listener": untrained_component("listener", foley_listener(), 1)})
    with pytest.raises(
        StageError, match=r"another listener than .*: remove .*hard and train again"
    ):
        copy_sound_networks(TINY_BUNDLE, bundle)


def test_a_summary_counts_the_time_of_steps_and_takes_the_last_evaluation(tmp_path):
    trained(tmp_path / "vae")
    made = summary(tmp_path, Stage("vae", "tiny_vae"))
    assert made["steps"] == 40
    assert made["minutes"] == pytest.approx((20 * 0.5 + 20 * 1.0) / 60)
    assert made["heldout"] == {"loss": 1.25, "loa_error": 0.5}


def test_what_is_done_is_not_done_again_and_a_failure_names_its_log(tmp_path, capsys):
    """A stage that depends on a failed one is never started, either."""
    first, broken = Stage("first", "absent"), Stage("broken", "absent")
    after = Stage("after", "absent", ("broken",))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "done.json").write_text("{}")
    with pytest.raises(StageError, match=r"broken failed, see the end of .*broken\.log"):
        run_stages(tmp_path, (first, broken, after), jobs=2)
    out = capsys.readouterr().out
    assert "first" not in out
    assert "after" not in out
    assert "there is no config" in (tmp_path / "broken.log").read_text()
    assert not (tmp_path / "after").exists()


def test_a_stage_that_was_stopped_is_not_done(tmp_path):
    stage = Stage("vae", "tiny_vae")
    trained(tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**CONFIG, "steps": 41}))
    assert record_completion(tmp_path, stage) == "was stopped at step 40"
    assert not (tmp_path / "vae" / "done.json").exists()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(CONFIG))
    assert record_completion(tmp_path, stage).startswith("40 steps in 0.5 min")
    assert json.loads((tmp_path / "vae" / "done.json").read_text()) == summary(tmp_path, stage)


def test_the_report_holds_the_figures_and_the_logs(tmp_path):
    stage = Stage("vae", "tiny_vae")
    trained(tmp_path / "runs" / "vae")
    done = tmp_path / "runs" / "vae" / "done.json"
    done.write_text(json.dumps(summary(tmp_path / "runs", stage)))
    write_report(tmp_path / "runs", (stage,), tmp_path / "docs", "hard_", command="make bundle")
    report = json.loads((tmp_path / "docs" / "hard_training.json").read_text())
    assert report["command"] == "make bundle"
    (table,) = report["tables"]
    assert table["rows"] == [["vae", 40, 0.5, "loss 1.25, loa error 0.5"]]
    kept = tmp_path / "docs" / "hard_training"
    assert len((kept / "vae.jsonl").read_text().splitlines()) == len(LINES)
    assert json.loads((kept / "vae.json").read_text()) == CONFIG


def test_packing_replaces_the_target_and_keeps_every_component(tmp_path):
    target = tmp_path / "packed"
    target.mkdir()
    (target / "old").touch()
    pack(TINY_BUNDLE, target)
    assert not (target / "old").exists()
    packed, shipped = Bundle.open(target), Bundle.open(TINY_BUNDLE)
    assert packed.entries.keys() == shipped.entries.keys()
    assert packed.settings == shipped.settings
    assert {str(a.dtype) for a in packed.store("vae").arrays.values()} == {"float16"}
    assert os.listdir(tmp_path) == ["packed"]
