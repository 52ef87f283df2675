# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Photographs an interactive or a live page in Chromium: python docs/figures/photograph_page.py PAGE.html OUT.png."""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('page', type=Path)
parser.add_argument('out', type=Path)
parser.add_argument('--dark', action='store_true')
parser.add_argument('--example', type=int, default=0, metavar='N', help='of a live page')
parser.add_argument('--hover', nargs=2, type=float, metavar=('X', 'Y'), help='the pointer, as a share of the picture')
parser.add_argument('--size', nargs=2, type=int, default=(1180, 980), metavar=('WIDTH', 'HEIGHT'))
args = parser.parse_args()
with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
    page = browser.new_page(
        viewport=dict(zip(('width', 'height'), args.size, strict=True)), color_scheme='dark' if args.dark else 'light'
    )
    page.goto(args.page.resolve().as_uri())
    page.wait_for_selector('body[data-drawn]')
    if page.locator('#arrows').count():
        page.check('#arrows')
    else:
        page.locator('#examples button').nth(args.example).click()
    page.wait_for_function('() => Number(document.body.dataset.drawn) > 1')
    if args.hover:
        frame = page.locator('#picture').bounding_box()
        drawn = page.evaluate('() => Number(document.body.dataset.drawn)')
        x, y = args.hover
        page.mouse.move(frame['x'] + x * frame['width'], frame['y'] + y * frame['height'])
        page.wait_for_function('drawn => Number(document.body.dataset.drawn) > drawn', arg=drawn)
    picture = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
    browser.close()
picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(args.out, optimize=True)
