# SPDX-License-Identifier: MIT
"""The main job on small runs: files, resume and errors."""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from regrow.app.experiment.dense_baseline import train_dense_baseline
from regrow.app.experiment.run import train
from regrow.app.training.distributed_fit import fit
from regrow.utils.errors import ConfigError, StateError

GMP = ("recipe=digits/gmp", "pruning.every=0.1")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(module_job):
    folder, job = module_job
    return folder, train(job(*GMP))


@pytest.fixture
def done(finished, job, tmp_path):
    """A finished run: its configuration, result and a copy of its folder."""
    folder, result = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return job(*GMP), copy.deepcopy(result), tmp_path / "run"


def test_result_holds_what_was_measured(done):
    _, result, folder = done
    assert json.loads((folder / "result.json").read_text()) == result
    weights = 14_288  # of the convolutions and the linear layer, by hand: see the model's tests
    pruned = round(0.9 * weights)
    assert result["sparsity"] == pruned / weights
    assert result["sparsity_total"] == pruned / 14_458
    assert result["dense"]["params"] == 14_458
    assert result["pruned"]["params"] == 14_458 - pruned
    assert result["compression"] == 14_458 / (14_458 - pruned)
    assert result["dense"]["macs"] / result["pruned"]["macs"] == result["theoretical_speedup"] > 1
    assert result["pruned"]["bytes"] < result["dense"]["bytes"]
    assert result["history"][-1]["after"] == result["sparsity"]
    assert result["levels"][-1]["sparsity"] == result["sparsity"]
    assert all(0 <= level["test_accuracy"] <= 1 for level in result["levels"])
    assert set(result["excluded"]) >= {"network.fc.bias"}
    assert torch.__version__.startswith(result["versions"]["torch"])
    assert (result["recipe"], result["seed"]) == ("digits/gmp", 0)
    assert "not faster" in result["verdict"] or "as fast" in result["verdict"]
    assert result["budget"] is None


def test_accuracy_is_measured_on_the_saved_file(done):
    """Reloaded by hand: a plain network and a plain loop."""
    _, result, folder = done
    from regrow.app.data.digits import Digits
    from regrow.app.models.digits_cnn import DigitsCNN

    state = torch.load(folder / result["checkpoint"], weights_only=True)["state_dict"]
    network = DigitsCNN()
    network.load_state_dict({name.removeprefix("network."): t for name, t in state.items()})
    network.eval()
    data = Digits(batch_size=64)
    data.setup()
    with torch.no_grad():
        right = [(network(x).argmax(1) == y).float() for x, y in data.test_dataloader()]
    assert torch.cat(right).mean().item() == pytest.approx(result["pruned"]["accuracy"])
    zeros = sum(int((w == 0).sum()) for name, w in network.named_parameters() if w.dim() > 1)
    assert zeros >= round(0.9 * 14_288)


def test_finished_job_is_not_run_again(done, capsys):
    cfg, result, folder = done

    def times():
        # filelock 3.13 writes its file anew
        files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    assert train(cfg) == result
    assert times() == before


def test_force_repeats_the_run_with_the_same_numbers(done, job):
    _, result, _ = done
    again = train(job(*GMP, "force=true"))
    for part in ("dense", "pruned"):
        for name in ("accuracy", "loss", "params", "macs", "bytes"):
            assert again[part][name] == result[part][name]
    assert again["history"] == result["history"]


def test_folder_of_other_settings_raises(done, job):
    with pytest.raises(ConfigError, match=r"has a run with other settings.*force=true"):
        train(job(*GMP, "pruning.sparsity=0.8"))


def test_dense_baseline_is_trained_once(done, job, monkeypatch):
    cfg, _, _ = done
    monkeypatch.setattr("regrow.app.experiment.dense_baseline.fit", None)  # calling it would fail
    control = train_dense_baseline(cfg)
    assert train_dense_baseline(job(*GMP, "pruning.sparsity=0.8", folder="other")) == control


def test_dense_baseline_is_trained_once_by_simultaneous_jobs(job, monkeypatch):
    """The one that comes later waits for the result. Here they are threads, each with its lock."""
    calls = []

    def counted(*args, **kw):
        calls.append(args)
        return fit(*args, **kw)

    monkeypatch.setattr("regrow.app.experiment.dense_baseline.fit", counted)
    jobs = [job(*GMP, f"pruning.sparsity={s}", folder=f"{s}") for s in (0.8, 0.9)]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(train_dense_baseline, jobs)
    assert one == other
    assert len(calls) == 1


def test_killed_run_resumes_bit_exactly(done, job, tmp_path, monkeypatch):
    """Interrupted in the middle of the second epoch."""
    _, result, folder = done
    whole = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)

    from lightning.pytorch import Callback

    class Cut(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 30:
                raise RuntimeError("cut")

    words = (*GMP, f"paths.controls={tmp_path / 'outputs' / 'controls'}")
    cfg = job(*words, folder="cut")
    build = __import__("regrow.app.training.fit", fromlist=["x"]).build_callbacks
    monkeypatch.setattr(
        "regrow.app.training.fit.build_callbacks",
        lambda cfg, pruning: [*build(cfg, pruning), Cut()],
    )
    with pytest.raises(RuntimeError, match="cut"):
        train(cfg)
    assert not (tmp_path / "cut" / "result.json").exists()
    monkeypatch.undo()
    resumed = train(cfg)
    for part in ("dense", "pruned"):
        for name in ("accuracy", "loss", "params", "macs", "bytes"):
            assert resumed[part][name] == result[part][name]
    assert resumed["history"] == result["history"]
    assert resumed["levels"] == result["levels"]
    again = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, again["state_dict"][name])
    moments = [s["momentum_buffer"] for s in whole["optimizer_states"][0]["state"].values()]
    others = [s["momentum_buffer"] for s in again["optimizer_states"][0]["state"].values()]
    assert all(map(torch.equal, moments, others))


def test_run_folder_holds_only_complete_files(done):
    _, _, folder = done
    assert files(folder) == {
        ".lock",
        "run.json",
        "result.json",
        "recipe.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/metrics.csv",
        "logs/hparams.yaml",
    }


def test_one_shot_without_retraining_prunes_the_trained_network(job, tmp_path):
    result = train(job("recipe=digits/oneshot", "trainer.max_epochs=0", "dense_epochs=1"))
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert len(result["history"]) == 1
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert state["callbacks"]
    # what is left is what the dense network had
    [first] = (tmp_path / "outputs" / "controls").glob("*/checkpoints/last.ckpt")
    dense = torch.load(first.parent / "best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in state["state_dict"].items():
        assert torch.equal(tensor, torch.where(tensor == 0, tensor, dense[name]))


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_threshold_prunes_the_weights_below_it(job, tmp_path, epochs):
    result = train(
        job(
            "recipe=digits/oneshot",
            "pruning=threshold",
            "pruning.sparsity=null",
            "pruning.threshold=0.05",
            "pruning.criterion=magnitude",
            f"trainer.max_epochs={epochs}",
            "pruning.every=0.2",
            "dense_epochs=1",
        )
    )
    assert result["history"][-1]["threshold"] == 0.05
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    weights = [t for n, t in state["state_dict"].items() if t.dim() > 1 and "num_b" not in n]
    assert sum(int((w == 0).sum()) for w in weights) == round(result["sparsity"] * 14_288) > 0
    if epochs == 0:
        [first] = (tmp_path / "outputs" / "controls").glob("*/checkpoints/last.ckpt")
        dense = torch.load(first.parent / "best.ckpt", weights_only=True)["state_dict"]
        for name, tensor in state["state_dict"].items():
            expected = dense[name].where(dense[name].abs() >= 0.05, 0) if tensor.dim() > 1 else None
            assert expected is None or torch.equal(tensor, expected)


@pytest.mark.parametrize("epochs", [0, 1])
def test_calibrated_pruning_with_and_without_training(job, tmp_path, epochs):
    words = (f"trainer.max_epochs={epochs}", "dense_epochs=1", "pruning.sparsity=0.5",
             "pruning.batches=2")  # fmt: skip
    result = train(job("recipe=digits/oneshot", "pruning=obs", *words))
    assert result["sparsity"] == pytest.approx(0.5, abs=1e-4)
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    if epochs == 0:  # kept weights were refitted, not only masked
        [first] = (tmp_path / "outputs" / "controls").glob("*/checkpoints/last.ckpt")
        dense = torch.load(first.parent / "best.ckpt", weights_only=True)["state_dict"]
        weights = [n for n, t in state["state_dict"].items() if t.dim() > 1 and "num_b" not in n]
        for name in weights:
            tensor = state["state_dict"][name]
            assert not torch.equal(tensor, dense[name].where(tensor != 0, 0))


def test_dense_recipe_is_its_own_baseline(job):
    result = train(job("recipe=digits/dense"))
    assert result["pruned"] is None
    assert result["verdict"].startswith("dense: accuracy")
    assert result["dense"]["params"] == 14_458


def test_start_from_a_run_and_from_a_checkpoint(done, job, tmp_path):
    _, result, folder = done
    for number, start in enumerate((folder, folder / result["checkpoint"])):
        words = (f"start={start}", "recipe=digits/oneshot", "trainer.max_epochs=1")
        result = train(job(*words, folder=f"from{number}"))
        assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_from_zeros_keeps_zeros_of_another_tool(done, job, tmp_path):
    """Of a file of weights without masks, pruned to 90 % before; the command prunes to 95 %."""
    _, result, folder = done
    saved = torch.load(folder / result["checkpoint"], weights_only=True)["state_dict"]
    weights = {name.removeprefix("network."): value for name, value in saved.items()}
    zeros = {name: value == 0 for name, value in weights.items() if value.dim() > 1}
    torch.save(weights, tmp_path / "sparse.pt")
    words = ("recipe=digits/oneshot", f"start={tmp_path / 'sparse.pt'}", "pruning.sparsity=0.95")
    ended = train(job(*words, "pruning.from_zeros=true", folder="zeros"))
    assert ended["sparsity"] == pytest.approx(0.95, abs=1e-4)
    file = tmp_path / "zeros" / ended["checkpoint"]
    last = torch.load(file, weights_only=True)["state_dict"]
    assert sum(int(places.sum()) for places in zeros.values()) > 10_000
    for name, places in zeros.items():
        assert not last[f"network.{name}"][places].any()


def test_finetune_settings_are_those_of_the_second_fit(job, tmp_path):
    words = ("recipe=digits/oneshot", "trainer.max_epochs=1", "dense_epochs=1")
    assert train(job(*words, "finetune.lr=0.001", "finetune.batch_size=100"))["lr"] == 0.001
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.001
    assert last["global_step"] == -(-1294 // 100)  # the training part, in batches of 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pruning.sparsity=90",), r"sparsity must be in \[0, 1\), got 90: write 0.9 for 90 %"),
        (("pruning.schedule=cubik",), "did you mean 'cubic'"),
        (("pruning.exclude=[netwrok.head]",), "matches no parameter: nearest are network"),
        (("pruning.every=1.0",), "longer than begin to end"),
        (("pruning.every=500ep",), "longer than begin to end"),
        (("pruning.begin=3",), "has no unit: write '3ep' or '3it'"),
        (("pruning.granularity='2:4'",), "write 0.5"),
        (("pruning.granularity='1:3'", "pruning.sparsity=0.667"), "does not divide"),
        (("pruning.distribution=erc",), "did you mean 'erk'"),
        (("pruning.criterion=magnitud",), "did you mean 'magnitude'"),
        (("start=nowhere.ckpt",), "does not exist"),
        pytest.param(
            ("start=pretrained:resnet18",),
            "needs torchvision or timm",
            marks=pytest.mark.skipif(bool(find_spec("torchvision")), reason="it is installed"),
        ),
        pytest.param(
            ("data=fashion_mnist", "data.root=nowhere", "data.download=false", "model=lenet5"),
            "nowhere",
            marks=pytest.mark.vision,
        ),
        (("model=lenet5",), "does not fit data"),
        (("model.num_classes=7",), "write model.num_classes=10"),
        (("+pruning.sparsty=0.5",), r"pruning\.sparsty is unknown: did you mean 'sparsity'"),
        (("monitor=val/acc",), "did you mean 'val/accuracy'"),
        (("trainer.fast_dev_run=true",), "saves no checkpoint to measure"),
        (("finetune.lr=0.001",), "has no effect with start=scratch"),
    ],
)
def test_wrong_settings_raise_before_training(job, words, message, monkeypatch, tmp_path):
    from regrow.app.training.classifier import Classifier

    def never(*_):
        raise AssertionError("a step was taken")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Classifier, "training_step", never)
    # the control is trained first: here it is there already
    monkeypatch.setattr("regrow.app.experiment.run.train_dense_baseline", lambda cfg: None)
    monkeypatch.setattr("regrow.app.experiment.run._dense_fields", lambda *_: {})
    with pytest.raises(Exception, match=message) as caught:
        train(job("recipe=digits/gmp", *words))
    assert "a step was taken" not in str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists()


def test_uncomposed_pruning_group_raises(job):
    cfg = job("recipe=digits/gmp")
    cfg.pruning = "gmp"
    with pytest.raises(ConfigError, match="is regrow installed in this environment"):
        train(cfg)


def test_damaged_start_raises_with_its_name(job, tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(StateError, match=r"bad\.ckpt cannot be read"):
        train(job("recipe=digits/oneshot", f"start={tmp_path / 'bad.ckpt'}"))


def test_retrained_start_changes_the_hash(job, tmp_path):
    """A run's folder counts by the checkpoint in it, not by its path."""
    train(job("recipe=digits/dense", folder="first"))
    words = ("recipe=digits/oneshot", f"start={tmp_path / 'first'}", "trainer.max_epochs=0")
    before = train(job(*words, folder="shot"))
    train(job("recipe=digits/dense", "trainer.max_epochs=1", "force=true", folder="first"))
    with pytest.raises(ConfigError, match="has a run with other settings"):
        train(job(*words, folder="shot"))
    after = train(job(*words, "force=true", folder="shot"))
    assert after["dense"]["accuracy"] != before["dense"]["accuracy"]


def test_run_killed_before_its_result_is_written_resumes(job, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("regrow.app.experiment.evaluate.time_networks", killed)
        with pytest.raises(KeyboardInterrupt):
            train(job(*GMP))
    result = train(job(*GMP))
    assert result["levels"][-1]["sparsity"] == result["sparsity"]


def test_each_sparse_phase_has_its_own_accuracy(job):
    words = ("pruning.schedule=cyclic", "pruning.begin=1ep", "pruning.end=5ep", "pruning.every=1ep")
    result = train(job("recipe=digits/gmp", *words, "trainer.max_epochs=6"))
    sparse = [level for level in result["levels"] if level["sparsity"] > 0]
    assert len(sparse) == 3
    assert len({level["test_loss"] for level in sparse}) == 3
    assert sparse[-1]["test_accuracy"] == result["pruned"]["accuracy"]


def test_other_callbacks_do_not_change_the_dense_baseline(job):
    stop = "{_target_:regrow.SparseEarlyStopping,monitor:val/loss}"
    result = train(job(*GMP, f"+callbacks.stop={stop}"))
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert result["epochs"] is None  # fewer than planned, perhaps


def test_diverged_training_raises(job):
    with pytest.raises(StateError, match=r"training has diverged, write a lower optimizer\.lr"):
        train(job("recipe=digits/dense", "optimizer.lr=1e9"))


def test_same_job_started_twice_raises(job, tmp_path):
    from filelock import FileLock

    cfg = job(*GMP)
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(StateError, match="another process"):
        train(cfg)


def test_checkpoints_that_are_missing(job, tmp_path):
    cfg, folder = job(*GMP, "trainer.max_epochs=2", "start=scratch"), tmp_path / "run"
    cfg.paths.controls = str(tmp_path / "controls")
    train(cfg)
    (folder / "result.json").unlink()
    with pytest.raises(StateError, match=r"level000\.pt is missing.*force=true"):
        train(cfg)
    (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(
        StateError, match=r"best\.ckpt is missing, though .*last\.ckpt .*force=true"
    ):
        train(cfg)
    [best] = (tmp_path / "controls").rglob("best.ckpt")
    best.unlink()
    with pytest.raises(StateError, match=rf"best\.ckpt is missing.*remove .*{best.parts[-3]}"):
        train(cfg)


def test_a_last_checkpoint_that_no_trainer_wrote(done):
    cfg, _, folder = done
    (folder / "result.json").unlink()
    torch.save({"state_dict": {}}, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(StateError, match=r"last\.ckpt was not written by a Trainer.*remove it"):
        train(cfg)


@pytest.mark.parametrize("content", [{}, [], "x", {"config_hash": None}])
def test_a_mark_of_another_kind_in_the_folder(done, content):
    cfg, _, folder = done
    (folder / "result.json").unlink()
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"has a run with other settings.*force=true"):
        train(cfg)
