# SPDX-License-Identifier: MIT
"""Number of examples: few and always the same by default, many in slow tests."""

from hypothesis import HealthCheck, Phase, settings

PLAIN = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    # Hypothesis explains a failure by running it hundreds of times more: not these
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


def few(examples, **kw):
    """The same examples at each run."""
    return settings(PLAIN, max_examples=examples, **kw)


def many(examples, **kw):
    """Other examples at each run; a failure prints how to have it again."""
    return settings(PLAIN, max_examples=examples, derandomize=False, print_blob=True, **kw)
