# SPDX-License-Identifier: MIT
"""Modules compiled in each of the ways that Lightning allows."""

import torch
from tiny_fits import ADAM, Net


class Inner(Net):
    """The network is compiled inside the module, before the fit."""

    def __init__(self, compiler, make=ADAM):
        super().__init__(make)
        self.body = torch.compile(self.body, backend=compiler)


class Late(Net):
    """Compiled where Lightning asks for it."""

    def __init__(self, compiler, make=ADAM):
        super().__init__(make)
        self.compiler = [compiler]

    def configure_model(self):
        if self.compiler:
            self.body = torch.compile(self.body, backend=self.compiler.pop())


class Whole(Net):
    """No counter of its own, on which the compiler would specialise."""

    def training_step(self, batch, batch_idx):
        return self.loss(batch)


def inner(compiler):
    return Inner(compiler), None


def late(compiler):
    return Late(compiler), None


def whole(compiler):
    module = Whole(ADAM)
    return module, torch.compile(module, backend=compiler)


def none(compiler):
    return Whole(ADAM), None


WAYS = {"inner": inner, "late": late, "whole": whole}
