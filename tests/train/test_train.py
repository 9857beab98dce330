import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.errors import SettingError, WriteError
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.weights import abstract, initialise, with_weights
from mfm_jax.train.optimizer import OptimizerConfig, build_optimizer, lr_multipliers
from mfm_jax.train.recipe import Recipe, mean_metrics
from mfm_jax.train.step import ComputeConfig, TrainState, init_state, make_step, trainable
from tests.full_disk import full_disk
from tests.train.regression import RATES, Regression, config
from train import main, train

ROOT = Path(__file__).parents[2]
ONE = Layout(make_mesh(MeshConfig()))


def flat(tree, prefix=""):
    for name, value in tree.items():
        where = f"{prefix}{name}."
        yield from flat(value, where) if isinstance(value, dict) else [(where, np.asarray(value))]


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, capsys):
    straight, stopped, resumed = Regression(), Regression(stop_at=1), Regression()
    assert train(config(straight), tmp_path / "a", "test") == 0
    assert train(config(stopped), tmp_path / "b", "test") == 143
    assert "stopped at step 6" in capsys.readouterr().out
    assert not any(kind == "finish" for kind, _ in stopped.log)
    assert train(config(resumed), tmp_path / "b", "test") == 0
    first, second = dict(flat(straight.log[-1][1])), dict(flat(resumed.log[-1][1]))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a")[12] < losses(tmp_path / "a")[3]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tmp_path):
    with pytest.raises(
        ValueError, match=r"the loss of step [1-6] is nan: .* its clips \([\d, ]*\b3\b[\d, ]*\)"
    ):
        train(config(Regression(poison=3)), tmp_path, "test")


def test_frozen_weights_have_no_moments_and_stay():
    recipe = Regression()
    network = initialise(recipe.build, 0)
    abstract_module = abstract(recipe.build)
    multiplier = lr_multipliers(RATES, trainable(abstract_module))
    tx = build_optimizer(OptimizerConfig(learning_rate=0.1), 10, multiplier)
    state = init_state(network, tx, multiplier, ema=False, seed=0, layout=ONE)
    assert set(state.frozen) == {"first.kernel", "first.bias"}
    assert set(state.stats) == {"norm.mean", "norm.var"}
    assert set(state.opt[1].mu) == set(state.params) == set(state.opt[1].nu)
    assert not set(state.params) & {*state.frozen, *state.stats}
    before = {n: np.array(w) for n, w in state.weights(averaged=False).items()}
    step = make_step(abstract_module, recipe.loss, tx, ema_decay=None, layout=ONE)
    batch = {k: np.stack([e[k] for e in recipe.prepare(Path())[0]]) for k in ("x", "y")}
    for _ in range(2):
        state, _ = step(state, batch)
    after = state.weights(averaged=False)
    changed = {name for name, value in before.items() if (value != np.asarray(after[name])).any()}
    assert changed == {*state.params, *state.stats}


def taken(steps, batch, **compute):
    """The weights after `steps` on one batch, and the last metrics."""
    recipe = Regression()
    abstract_module = abstract(recipe.build)
    multiplier = dict.fromkeys(trainable(abstract_module), 1.0)
    tx = build_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0), 10, multiplier)
    state = init_state(initialise(recipe.build, 0), tx, multiplier, ema=False, seed=0, layout=ONE)
    settings = ComputeConfig(**compute)
    step = make_step(abstract_module, recipe.loss, tx, ema_decay=None, layout=ONE, compute=settings)
    source = recipe.prepare(Path())[0][:batch]
    clips = {k: jnp.stack([e[k] for e in source]) for k in ("x", "y")}
    for _ in range(steps):
        state, metrics = step(state, clips)
    return {n: np.asarray(w) for n, w in state.params.items()}, jax.device_get(metrics)


@pytest.fixture
def no_statistics(monkeypatch):
    """Of a batch: those of its parts are others, and they stay in float32."""
    monkeypatch.setattr(nnx.BatchNorm, "__call__", lambda self, x: jnp.tanh(x))


@pytest.mark.usefixtures("no_statistics")
def test_parts_of_a_batch_add_up_to_it():
    whole, loss = taken(3, 12)
    parts, same_loss = taken(3, 12, accumulate=3)
    np.testing.assert_allclose(same_loss["loss"], loss["loss"], rtol=1e-6)
    np.testing.assert_allclose(same_loss["gradient"], loss["gradient"], rtol=1e-5)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, atol=1e-5, err_msg=name)


@pytest.mark.usefixtures("no_statistics")
def test_bfloat16_keeps_float32_weights_and_learns_the_same():
    exact, loss = taken(4, 12)
    rough, near = taken(4, 12, precision="bfloat16")
    assert {w.dtype for w in rough.values()} == {np.dtype("float32")}
    assert 0 < abs(near["loss"] - loss["loss"]) < 0.02 * loss["loss"]
    for name, value in exact.items():
        np.testing.assert_allclose(rough[name], value, atol=0.02, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "compute.precision is float32 or bfloat16, not 'float16'"),
        ({"remat": "all"}, "compute.remat is none or products or blocks, not 'all'"),
        ({"accumulate": 0}, "compute.accumulate is at least 1, not 0"),
    ],
)
def test_a_way_to_compute_that_is_none(settings, message):
    with pytest.raises(SettingError, match=message):
        ComputeConfig(**settings)


def test_a_batch_that_cannot_be_cut_into_parts(tmp_path):
    with pytest.raises(SettingError, match="a batch of 4 cannot be cut into 3 equal parts"):
        train(config(Regression(), compute=ComputeConfig(accumulate=3)), tmp_path, "test")


def test_patterns_are_tried_in_order_and_each_must_decide_something():
    names = ["a.kernel", "a.bias", "b.kernel"]
    rates = (("a.bias", 2.0), ("a.*", None))
    assert lr_multipliers(rates, names) == {"a.kernel": None, "a.bias": 2.0, "b.kernel": 1.0}
    with pytest.raises(SettingError, match=r"no weight is left for a\.bias"):
        lr_multipliers((("a.*", None), ("a.bias", 2.0)), names)


def test_factors_scale_the_updates_and_vectors_do_not_decay():
    multiplier = {"slow": 0.5, "fast": 1.0, "vector": 1.0}
    shapes = {"slow": (2, 2), "fast": (2, 2), "vector": (2,)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    tx = build_optimizer(
        OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5), 10, multiplier
    )
    still = {name: np.zeros_like(w) for name, w in weights.items()}
    updates, _ = jax.jit(tx.update)(still, jax.jit(tx.init)(weights), weights)
    assert float(updates["fast"][0, 0]) < 0
    np.testing.assert_allclose(updates["slow"], updates["fast"] / 2, rtol=1e-6)
    assert not np.any(updates["vector"])


def test_means_weigh_a_short_last_batch_by_its_size():
    batches = [{"x": np.ones(4)}, {"x": np.full(1, 6.0)}]
    assert mean_metrics(lambda b: {"x": b["x"].mean()}, batches) == {"x": 2.0}


def test_the_run_ends_with_its_best_weights(tmp_path):
    """The rate grows until the loss does."""
    recipe = Regression()
    long = OptimizerConfig(learning_rate=2.0, warmup_steps=12, lr_multipliers=RATES)
    settings = config(recipe, steps=24, eval_every=2, best="loss")
    assert train(replace(settings, optimizer=long), tmp_path, "test") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["heldout_loss"] for line in lines if "heldout_loss" in line}
    best = min(found, key=found.get)
    assert 0 < best < 24
    assert str(best) in {path.name for path in (tmp_path / "checkpoints").iterdir()}
    final = recipe.log[-1][1]
    module = abstract(recipe.build)
    weights = {name.rstrip("."): jnp.asarray(value) for name, value in flat(final)}
    assert Recipe.evaluate(recipe, with_weights(module, weights), recipe.prepare(tmp_path)[1], 4)[
        "loss"
    ] == pytest.approx(found[best], rel=1e-5)


def test_a_damaged_best_checkpoint_is_no_end_of_the_run(tmp_path, capsys):
    class Worse(Regression):
        """At its end it is worse than before, and has lost the checkpoint that was better."""

        def evaluate(self, module, source, batch):
            if self.log:
                shutil.rmtree(tmp_path / "checkpoints" / "6" / "ema")
            self.log.append(("evaluate", None))
            return {"loss": 100.0}

    assert train(config(Regression(stop_at=1), best="loss"), tmp_path, "test") == 143
    recipe = Worse()
    assert train(config(recipe, best="loss"), tmp_path, "test") == 0
    assert recipe.log[-1][0] == "finish"
    said = capsys.readouterr().out
    assert "checkpoint 6 cannot be used (" in said
    assert "trying the next best" in said


@pytest.mark.usefixtures("capsys")  # or what is said would go to a file, which is full as well
def test_a_disk_that_is_full_for_metrics_is_one_line_and_the_run_goes_on_later(tmp_path):
    straight, last = Regression(), Regression()
    assert train(config(straight), tmp_path / "a", "test") == 0
    assert train(config(Regression(stop_at=1)), tmp_path / "b", "test") == 143
    with ExitStack() as disk:

        class Full(Regression):
            """The disk is full when it is evaluated at the end."""

            def evaluate(self, module, source, batch):
                if self.log:
                    disk.enter_context(full_disk())
                return super().evaluate(module, source, batch)

        with pytest.raises(WriteError, match=r"cannot write .*/b \(.*\): make room there") as told:
            train(config(Full()), tmp_path / "b", "test")
    assert "\n" not in str(told.value)
    assert train(config(last), tmp_path / "b", "test") == 0
    first, second = dict(flat(straight.log[-1][1])), dict(flat(last.log[-1][1]))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_metric_that_the_evaluation_does_not_have(tmp_path):
    with pytest.raises(SettingError, match="best: the evaluation has no 'nose'; it has loss"):
        train(config(Regression(), best="nose"), tmp_path, "test")


def test_a_state_survives_its_items():
    recipe = Regression()
    multiplier = dict.fromkeys(trainable(abstract(recipe.build)), 1.0)
    tx = build_optimizer(OptimizerConfig(learning_rate=0.1), 12, multiplier)
    state = init_state(initialise(recipe.build, 0), tx, multiplier, ema=True, seed=3, layout=ONE)
    again = TrainState.of(state.items())
    assert again._replace(key=state.key) == state
    assert (again.key == state.key).all()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.recipe.maks=3", "AudioMAERecipe has no field 'maks'"),
        ("--config.recipe.mask_ratio=lots", "recipe.mask_ratio should be float, not 'lots'"),
        ("--config.steps=1.5", "steps should be int, not 1.5"),
        ('--config.optimizer.lr_multipliers=[["nose", null]]', "no weight is left for nose"),
    ],
)
def test_a_wrong_override_is_one_line(argument, message, tmp_path, capsys):
    code = main(
        ["--config", str(ROOT / "configs/tiny_audiomae.py"), "--workdir", str(tmp_path), argument]
    )
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.count("\n") == 1


def test_what_is_no_override_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--config", str(ROOT / "configs/tiny.py"), "--workdir", str(tmp_path), "--seed=3"])
    assert "--seed=3" in capsys.readouterr().err
