# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A browser for tests of pages: one for a file of tests, and pages that end the test where they fail or fetch."""

import os
import shutil
from contextlib import contextmanager

import pytest

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


@contextmanager
def launched(*arguments):
    """Launches Chromium. Without one the tests are skipped, and fail in CI."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get('CI'):
            pytest.fail('CI needs Chromium for the tests of pages')
        pytest.skip('no Chromium (Debian, Ubuntu: apt install chromium)')
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=['--no-sandbox', *arguments])
        yield chromium
        chromium.close()


@contextmanager
def watched_pages(browser, ready: str):
    """Opens pages from the disk, each once a selector is there. Afterwards nothing failed, and nothing was fetched."""
    contexts, errors, fetched = [], [], []

    def open_page(file, **options):
        context = browser.new_context(**dict(dict(viewport=dict(width=1280, height=900)), **options))
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda message: errors.append(message.text) if message.type == 'error' else None)
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.on('request', lambda request: fetched.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector(ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert not [url for url in fetched if not url.startswith(('file://', 'data:', 'blob:'))]
