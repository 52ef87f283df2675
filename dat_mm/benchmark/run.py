# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Runs the cases of a group in turn, one round after the other, each case in a process of its own."""

import multiprocessing
from dataclasses import dataclass, field

from .cases import Case

LONGEST = 50  # steps in one measurement


@dataclass
class Result:
    case: Case
    seconds: list[float] = field(default_factory=list)  # a step, by round
    peak: int = 0
    memory: int = 0  # of the peak, above the weights and the input
    logits: int = 0
    error: str | None = None


def work(case: Case, threads: int | None, pipe) -> None:
    """In the process of its own: a number of steps comes in, what they took goes out."""
    import warnings

    warnings.filterwarnings('ignore')
    try:
        from .subject import Subject

        subject = Subject(case, threads)
        pipe.send({})
        while number := pipe.recv():
            pipe.send(subject.time(number))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        lines = str(error).strip().splitlines() or ['']
        pipe.send(dict(error=f'{type(error).__name__}: {lines[0]}'))


class Worker:
    def __init__(self, case: Case, threads: int | None):
        context = multiprocessing.get_context('spawn')
        self.result, self.number = Result(case), 1
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(case, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self) -> float:
        """What the process answers goes into the result; the seconds are returned."""
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
        """None if it failed, now or before."""
        if self.result.error:
            return None
        self.pipe.send(self.number)
        seconds = self.receive()
        return None if self.result.error else seconds

    def stop(self) -> None:
        if self.process.is_alive() and not self.result.error:
            self.pipe.send(0)
        self.pipe.close()
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()


def run_group(cases, *, rounds: int, launches: int = 1, threads: int | None = None) -> list[Result]:
    """So many rounds in each launch: where its memory lies makes a process faster or slower for as long as it lives."""
    results = [Result(case) for case in cases]
    for _ in range(launches):
        for result, more in zip(results, launch(cases, rounds, threads), strict=True):
            result.seconds += more.seconds
            result.peak, result.memory = max(result.peak, more.peak), max(result.memory, more.memory)
            result.logits, result.error = more.logits, result.error or more.error
    return results


def launch(cases, rounds: int, threads: int | None, at_least: float = 0.2) -> list[Result]:
    """The first step of each warms up, and counts if there are no rounds; a measurement takes `at_least` seconds."""
    workers = [Worker(case, threads) for case in cases]
    try:
        for worker in workers:
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
    finally:
        for worker in workers:
            worker.stop()
    return [worker.result for worker in workers]
