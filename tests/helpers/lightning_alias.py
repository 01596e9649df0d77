# SPDX-License-Identifier: MIT
"""`import lightning` in tests gives `pytorch_lightning`, where that is installed alone.

Programs that tests start do without, because they say what a user can import; those that import
helpers of the tests have it too: `python -m lightning_alias SCRIPT WORDS`.
"""

import importlib
import importlib.abc
import importlib.util
import runpy
import sys


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `lightning.pytorch.X` as `pytorch_lightning.X`, the same module object."""

    def __init__(self):
        self.specs = {}

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "lightning":
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec):
        name = spec.name
        for alias, real in [
            ("lightning.pytorch", "pytorch_lightning"),
            ("lightning.fabric", "lightning_fabric"),
            ("lightning", "pytorch_lightning"),
        ]:
            if name == alias or name.startswith(f"{alias}."):
                module = importlib.import_module(real + name.removeprefix(alias))
                self.specs[name] = module.__spec__
                return module
        raise ModuleNotFoundError(name=name)

    def exec_module(self, module):
        """Give the module its own spec back, which the import has replaced."""
        module.__spec__ = self.specs.pop(module.__spec__.name)


def install_alias():
    """Add the finder if `lightning` is missing; regrow is imported before, without its help."""
    if importlib.util.find_spec("lightning") is None:
        importlib.import_module("regrow.callbacks.magnitude_pruning")
        sys.meta_path.insert(0, AliasFinder())  # before that of files, which would make copies


if __name__ == "__main__":
    install_alias()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
