# SPDX-License-Identifier: MIT
"""Extension of mkdocstrings: reads the docstrings' "Example:" as the section that it knows."""

import re

import griffe


class Examples(griffe.Extension):
    """Renames the section, whose lines are else taken for prose."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Changes the docstring of each class, function and module."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M
            )
