# SPDX-License-Identifier: MIT
"""A headless browser for the tests of the report's page."""

import pytest


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Opens pages in headless Chromium; skipped where there is none."""
    from report_browser import PROGRAM, Browser

    if PROGRAM is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()
