# SPDX-License-Identifier: MIT
"""Makes `made` importable for the tests of this folder, and gives a browser."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Opens pages in headless Chromium; skipped where there is none."""
    from looking import PROGRAM, Browser

    if PROGRAM is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()
