# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Runs the cases of a group in turn, one round after the other, each case in a process of its own."""

import multiprocessing
import os
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

from .cases import Case

FOLDER = 'DAT_MM_BENCHMARK_FILES'  # the variable that names the folder of the files that other runtimes run
PRODUCTS = 'products'  # asks a process for a step under the profiler
LONGEST = 50  # steps in one measurement, at most


@dataclass
class Result:
    """Holds what was measured of a case."""

    case: Case
    seconds: list[float] = field(default_factory=list)  # for one step, in each round
    peak: int = 0  # bytes
    memory: int = 0  # bytes of the peak that are above the weights and the input
    logits: int = 0  # of all deformable attentions, for the whole batch
    products: list[float] = field(default_factory=list)  # seconds of a step that are matrix products, in each launch
    error: str | None = None


def work(case: Case, threads: int | None, pipe) -> None:
    """Runs in the process of a case: receives how many steps to time, or PRODUCTS, and sends that, until 0."""
    import warnings

    warnings.filterwarnings('ignore')
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler would tell of GPUs that it does not find
    try:
        from .subject import Subject

        subject = Subject(case, threads)
        pipe.send({})
        while number := pipe.recv():
            pipe.send(subject.products() if number == PRODUCTS else subject.time(number))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        lines = str(error).strip().splitlines() or ['']
        pipe.send(dict(error=f'{type(error).__name__}: {lines[0]}'))


class Worker:
    """Starts and drives the process of a case, and gathers its result."""

    def __init__(self, case: Case, threads: int | None):
        context = multiprocessing.get_context('spawn')
        self.result, self.number = Result(case), 1
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(case, threads, theirs))
        self.process.start()
        theirs.close()

    def receive(self) -> float:
        """Puts what the process answers into the result, and returns the seconds of a step."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            answer = dict(error=f'its process ended with code {self.process.exitcode}: was there enough memory?')
        seconds = answer.pop('seconds', 0.0)
        for name, value in answer.items():
            setattr(self.result, name, value)
        return seconds

    def time(self) -> float | None:
        """Runs the steps and returns the seconds of one, or None if the case failed, now or before."""
        if self.result.error:
            return None
        self.pipe.send(self.number)
        seconds = self.receive()
        return None if self.result.error else seconds

    def find_products(self) -> None:
        """Has the products of a step timed by the profiler, where the case can tell."""
        if not self.result.error and self.result.case.profiled:
            self.pipe.send(PRODUCTS)
            self.receive()

    def stop(self) -> None:
        """Ends the process, by force if it does not end within half a minute."""
        if self.process.is_alive() and not self.result.error:
            self.pipe.send(0)
        self.pipe.close()
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


def run_group(cases, *, rounds: int, launches: int = 1, threads: int | None = None) -> list[Result]:
    """Measures the cases of a group, by turns, `rounds` times in each of several launches.

    Where its memory happens to lie makes a process faster or slower for as long as it lives: launches even that out.
    """
    results = [Result(case) for case in cases]
    with TemporaryDirectory() as files:
        os.environ[FOLDER] = files  # of what other runtimes run: exported in the first launch
        for _ in range(launches):
            for result, more in zip(results, launch(cases, rounds, threads), strict=True):
                result.seconds += more.seconds
                result.products += more.products
                result.peak, result.memory = max(result.peak, more.peak), max(result.memory, more.memory)
                result.logits, result.error = more.logits, result.error or more.error
    return results


def launch(cases, rounds: int, threads: int | None, at_least: float = 0.2) -> list[Result]:
    """Starts the processes of a group, and in each round measures every case once, for `at_least` seconds.

    The first step of a case warms up. With no rounds it is what counts.
    """
    workers = []
    try:
        for case in cases:
            workers.append(Worker(case, threads))
            if case.runtime != 'torch':  # one after the other: those of a model share a file, which the first exports
                workers[-1].receive()
        for worker in workers:
            if worker.result.case.runtime == 'torch':
                worker.receive()
        for worker in workers:
            seconds = worker.time()
            if not rounds and seconds:
                worker.result.seconds.append(seconds)
            if rounds and worker.result.case.device == 'cuda':
                seconds = worker.time()  # the first one compiled
            worker.number = max(1, min(LONGEST, int(at_least / seconds))) if seconds else 1
        for _ in range(rounds):
            for worker in workers:
                if seconds := worker.time():
                    worker.result.seconds.append(seconds)
        if rounds:
            for worker in workers:
                worker.find_products()
    finally:
        for worker in workers:
            worker.stop()
    return [worker.result for worker in workers]
