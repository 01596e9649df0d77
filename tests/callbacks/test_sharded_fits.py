# SPDX-License-Identifier: MIT
"""Fits with parameters sharded by FSDP2 have the masks of DDP."""

import gloo_ranks
import pytest
from sharded_fits import SETUP

pytestmark = [pytest.mark.slow, pytest.mark.guard]

FITS = """
class Zeros(Callback):
    "After each step and at validation: pruned weights and their moments are exactly zero."
    looks = 0
    def __init__(self, pruning):
        self.pruning = pruning
    def look(self, trainer, module):
        enforcer = self.pruning.pruner.enforcer
        for name, parameter in enforcer.parameters.items():
            gone = ~enforcer.mask(name)
            assert not local_tensor(parameter.detach())[gone].view(torch.int32).any(), name
            for optimizer in trainer.optimizers:
                for value in optimizer.state.get(parameter, {}).values():
                    if torch.is_tensor(value) and value.shape == parameter.shape:
                        assert self.pruning.soft or not local_tensor(value)[gone].any(), name
        self.looks += 1
    def on_train_batch_end(self, trainer, module, *_):
        self.look(trainer, module)
    def on_validation_batch_start(self, trainer, module, *_):
        self.look(trainer, module)

CASES = {
    "gradual": lambda: MagnitudePruning(0.9, begin=0.0, end=0.5, every="1it"),
    "erk": lambda: MagnitudePruning(0.7, begin=0.0, end=0.5, every="1it", distribution="erk"),
    "snip": lambda: MagnitudePruning(0.8, criterion="snip", begin=0.0, end=0.5, every="2it"),
    "movement": lambda: MagnitudePruning(0.6, criterion="movement", begin="2it", end=0.5,
                                         every="2it"),
    "random": lambda: MagnitudePruning(0.7, criterion="random", begin=0.0, end=0.5, every="2it"),
    "soft": lambda: MagnitudePruning(0.7, begin=0.0, end=0.5, every="2it", soft=True),
    "n:m": lambda: MagnitudePruning(0.5, granularity="1:2", begin=0.0, end=0.5, every="2it"),
    "rigl": lambda: DynamicSparseTraining(0.7, every="2it"),
    "set": lambda: DynamicSparseTraining(0.7, grow="random", every="2it", init="he"),
    "snfs": lambda: DynamicSparseTraining(0.7, grow="momentum", every="2it"),
}
for name, make in CASES.items():
    pruning, module, monitor = make(), Sharded(ADAM), SparsityMonitor()
    zeros = Zeros(pruning)
    fitted = sharded(pruning, zeros, monitor)
    fitted.fit(module, data(), DataLoader(samples(16), 4))
    assert zeros.looks == 8 * 2 + 2 * 2, zeros.looks
    other, plain = make(), Net(ADAM)
    job(other).fit(plain, data(), DataLoader(samples(16), 4))
    assert [(e["step"], e["after"]) for e in pruning.history] == [
        (e["step"], e["after"]) for e in other.history], name
    assert pruning.sparsity == other.sparsity > 0.49
    assert fitted.callback_metrics["pruning/sparsity"] == pytest_approx(pruning.sparsity)
    for key, mask in pruning.masks.items():
        assert torch.equal(mask.full_tensor(), other.masks[key]), (name, key)
    for key, value in whole(module).items():
        expected = dict(plain.named_parameters())[key]
        assert torch.allclose(value, expected, atol=1e-5), (name, key)
    said[name] = pruning.sparsity
"""

RESUMED = """
def fit_in_parts(name, make, parts, **extra):
    straight, pruning = Sharded(ADAM), make()
    sharded(pruning, saver(name), parts=parts, max_epochs=3, **KEPT).fit(straight, data())
    again, resumed = Sharded(ADAM), make()
    path = str(OUT / name / "epoch=0.ckpt")
    sharded(resumed, parts=parts, max_epochs=3).fit(again, data(), ckpt_path=path)
    assert resumed.history == pruning.history and len(pruning.history) > 2, name
    assert resumed.history[0]["step"] < 8 < resumed.history[-1]["step"]
    one, other = whole(straight), whole(again)
    assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    for key, mask in pruning.masks.items():
        assert torch.equal(local_tensor(mask), local_tensor(resumed.masks[key])), name
    return straight, pruning, path

def gradual(**kw):
    return lambda: MagnitudePruning(0.9, begin=0.0, end=0.75, every="3it", **kw)

straight, pruning, path = fit_in_parts("full", gradual(), False)
fit_in_parts("moments", gradual(keep_removed="moments"), False)
fit_in_parts("movement", lambda: MagnitudePruning(
    0.8, criterion="movement", begin="2it", end=0.75, every="3it"), False)
fit_in_parts("soft", gradual(soft=True), False)
fit_in_parts("snfs", lambda: DynamicSparseTraining(0.7, grow="momentum", every="2it"), False)
fit_in_parts("parts", gradual(keep_removed=False), True)
fit_in_parts("rigl", lambda: DynamicSparseTraining(0.7, every="2it"), True)

# un-prune after the fit puts back what each rank removed; a whole model reads the same file
removed = whole(straight)
pruning.unprune()
said["back"] = int(sum((value != removed[key]).sum() for key, value in whole(straight).items()))
said["gone"] = 130
if RANK == 0:
    saved = read(OUT / "full" / "epoch=2.ckpt")
    model, attached = Net(ADAM), MagnitudePruning(0.9)
    model.load_state_dict(saved["state_dict"])
    attached.attach(model, OUT / "full" / "epoch=2.ckpt")
    assert attached.masks.pruned == 130
    attached.unprune()
    said["whole"] = {key: value.detach().clone() for key, value in model.named_parameters()}
said["cut"] = whole(straight)

# a second fit goes on
before = pruning.sparsity
second = sharded(pruning, max_epochs=1)
second.fit(straight, data())
assert pruning.sparsity > before == 0.0

# masks are carried over by a file alone
try:
    pruning.attach(straight)
except StateError as error:
    said["carried"] = str(error)

# two pruners over one layer: every rank counts what both keep, of all rows
both = [MagnitudePruning(0.5, schedule="one_shot", begin="1it", include=["body.*"]),
        MagnitudePruning(0.5, schedule="one_shot", begin="1it", include=["body.2"],
                         criterion="random")]
module, monitor = Sharded(ADAM), SparsityMonitor()
fitted = sharded(*both, monitor, max_epochs=1)
fitted.fit(module, data())
kept = [local_tensor(callback.masks["body.2.weight"]) for callback in both]
everywhere = both[0].pruner.state.shards.sums({"body.2.weight": int((kept[0] & kept[1]).sum())})
density = fitted.callback_metrics["pruning/density/body.2.weight"]
assert abs(float(density) - everywhere["body.2.weight"] / 48) < 1e-6

# weights come back in a fit
module, pruning = Sharded(ADAM), MagnitudePruning(0.8, schedule="one_shot", begin="2it")
back = Regrow(at="9it", fraction=0.25, by="gradient", init="removed")
sharded(pruning, back).fit(module, data())
assert [entry["kind"] for entry in pruning.history] == ["prune", "regrow"]
said["regrown"] = pruning.pruner.pruned
"""

REFUSED = """
def refusal(*callbacks, module=None, **kw):
    module = module or Sharded(ADAM)
    try:
        sharded(*callbacks, **kw).fit(module, data())
    except ConfigError as error:
        assert module.trained == 0
        return str(error)
    return "worked"

class Forward(Sharded):
    def forward(self, x):
        return self.body(x)

said["channels"] = refusal(ChannelPruning(0.5, example_input=torch.zeros(1, 6)), module=Forward())
said["rewind"] = refusal(MagnitudePruning(0.5, keep_removed=False), Rewind("2it"))
said["budget"] = refusal(MagnitudePruning(0.5), AccuracyBudget("val/loss", 0.1, mode="min"))
early = {"begin": "2it", "end": "4it"}
said["late growth"] = refusal(MagnitudePruning(0.5, **early), Regrow(at="8it", fraction=0.1,
                                                                     init="orthogonal"))
said["late train"] = refusal(MagnitudePruning(0.5, **early), Regrow(at="8it", fraction=0.1,
                                                                    train="regrown"))
said["late init"] = refusal(DynamicSparseTraining(0.5, every="4it", init="survivors"))
said["lamp"] = refusal(MagnitudePruning(0.5, distribution="lamp"))
said["lbfgs"] = refusal(MagnitudePruning(0.5), module=Sharded(torch.optim.LBFGS))
"""


def test_masks_equal_those_of_ddp(tmp_path):
    program = "from pytest import approx as pytest_approx\n" + SETUP + FITS
    for said in gloo_ranks.run(program, tmp_path, timeout=500):
        assert len(said) == 10


def test_resumed_fits_are_bit_exact(tmp_path):
    one, other = gloo_ranks.run(SETUP + RESUMED, tmp_path, timeout=500)
    for said in (one, other):
        assert said["back"] == said["gone"]
        assert "attach(model, ckpt)" in said["carried"]
        assert said["regrown"] == 115 - round(0.25 * 115)
        assert said["cut"].keys() == one["whole"].keys()
        for key, value in said["cut"].items():
            assert (value == one["whole"][key]).all(), key


def test_unsupported_features_raise_with_shards_before_training(tmp_path):
    for said in gloo_ranks.run(SETUP + REFUSED, tmp_path, timeout=300):
        assert "channels cannot be cut out of shards" in said["channels"]
        assert "Rewind stores whole ones" in said["rewind"]
        assert "AccuracyBudget stores whole ones" in said["budget"]
        assert "'lamp'" in said["lamp"]
        assert "init='orthogonal' needs all" in said["late growth"]
        assert "write train='all'" in said["late train"]
        assert "init='survivors' needs all" in said["late init"]
        assert "LBFGS needs whole ones" in said["lbfgs"]
