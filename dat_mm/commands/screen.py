# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: a line for each thing that happened, with the minutes since the start."""

import re
import shutil
import sys
import time

PROGRESS = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*?eta: (\S+).*?\bloss: (\S+)')


def bar(share: float, width: int = 20) -> str:
    """A bar of text that is filled up to a share."""
    full = round(width * share)
    return f'[{"#" * full}{"." * (width - full)}]'


class Screen:
    """Prints lines; on a terminal one more, the last, is written over as the work goes on."""

    def __init__(self, out=None):
        self.out = out or sys.stdout
        self.start, self.live = time.monotonic(), self.out.isatty()

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        self._wipe()
        print(f'{minutes:2}:{seconds:02}  {text}', file=self.out, flush=True)

    def now(self, text: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self._wipe()
            print(f'       {text}'[:width], end='', file=self.out, flush=True)

    def _wipe(self):
        if self.live:
            self.out.write('\r\033[K')

    def end(self, text: str) -> None:
        self._wipe()
        print(text, file=self.out, flush=True)


class Progress:
    """How far trainings that run side by side are, read from the lines of their logs.

    A third and two thirds of the way through are told for good, the rest on a terminal only.
    """

    def __init__(self, screen: Screen, epochs: dict[str, int]):
        self.screen, self.epochs, self.seen, self.told = screen, epochs, {}, 0

    def read(self, name: str, line: str) -> bool:
        """Whether the line tells of progress."""
        match = PROGRESS.search(line)
        if match:
            epoch, at, of, left, loss = match.groups()
            done = (int(epoch) - 1 + int(at) / int(of)) / self.epochs[name]
            self.seen[name] = done, left.split(':', 1)[1] if left.startswith('0:') else left, float(loss)
            self._show()
        return match is not None

    def _show(self):
        losses = ', '.join(f'{name} {self.seen[name][2]:.2f}' for name in self.epochs if name in self.seen)
        done, left, _ = min(self.seen.values())
        text = f'{100 * done:.0f} % trained, {left} left; loss: {losses}'
        self.screen.now(text)
        if len(self.seen) == len(self.epochs) and int(3 * done) > self.told:
            self.told = int(3 * done)
            if self.told < 3:
                self.screen.say(text)
