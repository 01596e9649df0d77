# SPDX-License-Identifier: MIT
"""Modules for three tasks, with made data: segmentation, classification, detection."""

import lightning.pytorch as pl
import torch
from torch import nn

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(8, 3, 32, 32, generator=GENERATOR)


class Task(pl.LightningModule):
    """Trains `network` on batches of made images and targets."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = self.make()

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self):
        return torch.utils.data.DataLoader([*zip(IMAGES, self.targets(), strict=True)], 4)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Segmentation(Task):
    """A UNet with two levels; each pixel is bright or not."""

    def make(self):
        return UNet()

    def targets(self):
        return (IMAGES.mean(1) > 0.5).long()


class Classification(Task):
    """A small ViT."""

    def make(self):
        from timm import create_model

        sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4}
        return create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=3, **sizes
        )

    def targets(self):
        return torch.arange(8) % 3


class Detection(Task):
    """A detector of torchvision; each image has one box."""

    def make(self):
        from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

        return fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=32, max_size=32
        )

    def targets(self):
        return [{"boxes": torch.tensor([[4.0, 4, 20, 24]]), "labels": torch.tensor([1])}] * 8

    def train_dataloader(self):
        pairs = [*zip(IMAGES, self.targets(), strict=True)]

        def collate(items):
            return [*zip(*items, strict=True)]

        return torch.utils.data.DataLoader(pairs, 4, collate_fn=collate)

    def training_step(self, batch, batch_idx):
        return sum(self.network([*batch[0]], [*batch[1]]).values())


class UNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first, self.second = block(3, width), block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        first = self.first(x)
        second = self.second(nn.functional.max_pool2d(first, 2))
        return self.head(self.last(torch.cat([first, self.up(second)], 1)))


def block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def dense_outputs(module):
    """The outputs in eval mode; of the detector before boxes are chosen."""
    found = []
    heads = [m for name, m in module.named_modules() if name == "network.rpn.head"]
    for head in heads:
        head.register_forward_hook(lambda *given: found.extend([*given[-1][0], *given[-1][1]]))
    with torch.no_grad():
        made = module.eval()([*IMAGES] if heads else IMAGES)
    return found or [made]
