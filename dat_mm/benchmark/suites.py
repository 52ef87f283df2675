# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Every target of the project, as cases to run and numbers to reach. 'Published' is the reference backend."""

from dataclasses import dataclass, replace

from .cases import OP, Case

SWIN = 'timm/swin_tiny_patch4_window7_224'
MM_SWIN = 'mmpretrain/SwinTransformer/tiny'
CONVNEXT = 'timm/convnext_base'


@dataclass(frozen=True)
class Target:
    """The measure of a case against another, see MEASURES in report.py; growth: over several cases."""

    title: str
    measure: str
    bound: float
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Group:
    name: str
    cases: tuple[Case, ...]
    rounds: int  # of each launch
    targets: tuple[Target, ...] = ()
    launches: int = 1


def published(case: Case) -> Case:
    return replace(case, backend='reference')


def peer(case: Case, model: str) -> Case:
    return replace(case, model=model, backend=None)


def growth(case: Case, sides, sides_published, rounds: int) -> Group:
    cases = tuple(replace(case, size=(side, side)) for side in sides)
    last = cases[-3:]  # small maps cost a constant
    title = f'growth of {case.model}, {sides[-3]} to {sides[-1]}'
    return Group(
        'growth',
        cases + tuple(published(case) for case in cases if case.size[0] in sides_published),
        rounds,
        tuple(
            Target(f'{title}: {measure}', measure, 1.1, last)
            for measure in ('time over logits', 'memory over logits', 'memory over pixels')
        ),
    )


def cpu_suite() -> list[Group]:
    tiny, tiny_pp = Case('dat-tiny', (800, 1280)), Case('datpp-tiny', (800, 1280))
    step = Case('dat-tiny', (512, 512), mode='training')
    huge = Case('dat-tiny', (2048, 2048))
    groups = [
        Group(
            'detection',
            (tiny, tiny_pp, published(tiny), peer(tiny, SWIN), peer(tiny, MM_SWIN)),
            2,
            (
                Target('dat-tiny, 800x1280, inference: speed over published', 'speed', 4, (tiny, published(tiny))),
                Target(
                    'dat-tiny, 800x1280, inference: memory over published', 'memory', 1 / 3, (tiny, published(tiny))
                ),
                Target("dat-tiny, 800x1280, inference: time over Swin-T's", 'time', 1.4, (tiny, peer(tiny, SWIN))),
                Target("datpp-tiny, 800x1280, inference: time over Swin-T's", 'time', 1.6, (tiny_pp, peer(tiny, SWIN))),
            ),
            launches=3,
        ),
        Group(
            'training-512',
            (step, published(step)),
            3,
            (
                Target('dat-tiny, 512x512, training step: speed over published', 'speed', 2, (step, published(step))),
                Target(
                    'dat-tiny, 512x512, training step: memory over published', 'memory', 0.5, (step, published(step))
                ),
            ),
            launches=3,
        ),
    ]
    rates = (
        ('inference', 'float32', 1.15, 0.8),
        ('inference', 'bfloat16', 1.0, None),
        ('training', 'float32', 0.95, None),
    )
    for mode, dtype, bound, bound_pp in rates:
        ours = Case('dat-tiny', batch=8, dtype=dtype, mode=mode, task='classify')
        ours_pp = replace(ours, model='datpp-tiny')
        swin = peer(ours, SWIN)
        what = f"224, batch 8, {mode}, {dtype}: rate over Swin-T's"
        targets = [Target(f'dat-tiny, {what}', 'speed', bound, (ours, swin))]
        if bound_pp:
            targets.append(Target(f'datpp-tiny, {what}', 'speed', bound_pp, (ours_pp, swin)))
        cases = [ours, ours_pp, published(ours), swin]
        if dtype == 'float32':  # with weights in bfloat16, mmpretrain's does not run
            cases.append(peer(ours, MM_SWIN))
        groups.append(Group(f'{mode}-224-{dtype}', tuple(cases), 3, tuple(targets), launches=4))
    groups.append(
        Group('2048', (huge,), 1, (Target('dat-tiny, 2048x2048, inference: peak memory, GB', 'peak', 6, (huge,)),))
    )
    groups.append(growth(Case('dat-tiny'), (256, 512, 768, 1024, 1280, 1536), (256, 512, 768, 1024), 3))
    return groups


def compiled(case: Case) -> Case:
    return replace(case, compiled=True)


def gpu_suite() -> list[Group]:
    op = Case(OP, (50, 80), dtype='bfloat16', mode='backward', device='cuda')
    step = Case('dat-tiny', batch=128, dtype='amp', mode='training', task='classify', device='cuda')
    rate = replace(step, mode='inference', dtype='bfloat16')
    tiny = Case('dat-tiny', (800, 1280), batch=2, dtype='amp', mode='backward', device='cuda')
    swin = peer(tiny, SWIN)
    base = Case('dat-base', (800, 800), batch=2, dtype='bfloat16', device='cuda')
    groups = []
    for case, targets in (
        (
            op,
            (
                Target(
                    'attention op, 50x80, forward + backward: speed over published', 'speed', 8, (op, published(op))
                ),
                Target('attention op, 50x80, forward + backward: memory', 'memory', 1 / 20, (op, published(op))),
            ),
        ),
        (replace(op, mode='inference'), ()),
    ):
        ways = [replace(case, backend=name) for name in ('dense', 'separable')]  # dense: by PyTorch's fused attention
        groups.append(Group(f'op-{case.mode}', (case, *ways, published(case), compiled(published(case))), 20, targets))
    groups += [
        Group(
            'training-224',
            (step, published(step), peer(step, SWIN), peer(step, MM_SWIN)),
            15,
            (
                Target(
                    'dat-tiny, 224, batch 128, training step: speed over published',
                    'speed',
                    1.5,
                    (step, published(step)),
                ),
                Target(
                    "dat-tiny, 224, batch 128, training step: rate over Swin-T's",
                    'speed',
                    0.9,
                    (step, peer(step, SWIN)),
                ),
            ),
        ),
        Group(
            'inference-224',
            tuple(how(case) for case in (rate, published(rate), peer(rate, SWIN)) for how in (replace, compiled)),
            15,
        ),
        Group('batches', tuple(replace(step, batch=n) for n in (16, 32, 64, 256)), 5),
    ]
    detection, targets = [], []
    for model in ('dat-tiny', 'datpp-tiny'):
        case = replace(tiny, model=model)
        what = f'{model}, 800x1280, batch 2, forward + backward'
        detection += [case, published(case)]
        targets += [
            Target(f'{what}: speed over published', 'speed', 4, (case, published(case))),
            Target(f'{what}: memory over published', 'memory', 1 / 4, (case, published(case))),
            Target(f"{what}: rate over Swin-T's", 'speed', 0.7, (case, swin)),
        ]
    groups.append(Group('detection', (*detection, swin, peer(tiny, MM_SWIN)), 15, tuple(targets)))
    convnext = peer(base, CONVNEXT)
    title = "dat-base, 800x800, batch 2, inference: rate over ConvNeXt-B's"
    groups.append(
        Group('base', (base, published(base), convnext), 15, (Target(title, 'speed', 0.8, (base, convnext)),))
    )
    case = Case('dat-tiny', dtype='bfloat16', device='cuda')
    groups.append(growth(case, (512, 768, 1024, 1280, 1536, 2048), (512, 768, 1024, 1280, 1536), 10))
    return groups


SUITES = {'cpu': cpu_suite, 'gpu': gpu_suite}
