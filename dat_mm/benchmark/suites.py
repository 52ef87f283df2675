# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Every target of the project, as cases to run and numbers to reach.

The reference is the backend of that name, which computes what the authors' code does, operation for operation. For
neighborhoods the authors have CUDA kernels of their own, and the reference gathers the neighbors, which takes longer.
"""

from dataclasses import dataclass, replace

from .cases import OP, Case

SWIN = 'timm/swin_tiny_patch4_window7_224'
MM_SWIN = 'mmpretrain/SwinTransformer/tiny'
CONVNEXT = 'timm/convnext_base'


@dataclass(frozen=True)
class Target:
    """Bounds the value that a measure, of MEASURES in tables.py, gives for some cases."""

    title: str
    measure: str
    bound: float
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Group:
    """Holds cases that are timed side by side, and the targets that are about them."""

    name: str
    cases: tuple[Case, ...]
    rounds: int  # in each launch
    targets: tuple[Target, ...] = ()
    launches: int = 1


def reference(case: Case) -> Case:
    """Makes the same case for the reference backend."""
    return replace(case, backend='reference')


def peer(case: Case, model: str) -> Case:
    """Makes the same case for another model, which has no backends."""
    return replace(case, model=model, backend=None)


def growth(case: Case, sides, sides_reference, rounds: int) -> Group:
    """Measures squares of growing sides, some with the reference too; targets are exponents over the three largest."""
    cases = tuple(replace(case, size=(side, side)) for side in sides)
    last = cases[-3:]  # on small maps constant costs dominate
    title = f'growth of {case.model}, {sides[-3]} to {sides[-1]}'
    return Group(
        'growth',
        cases + tuple(reference(case) for case in cases if case.size[0] in sides_reference),
        rounds,
        tuple(
            Target(f'{title}: {measure}', measure, 1.1, last)
            for measure in ('time over logits', 'memory over logits', 'memory over pixels')
        ),
    )


def cpu_suite() -> list[Group]:
    """Lists the targets on the CPU."""
    tiny, tiny_pp = Case('dat-tiny', (800, 1280)), Case('datpp-tiny', (800, 1280))
    step = Case('dat-tiny', (512, 512), mode='training')
    lean = replace(step, with_cp='auto')
    huge = Case('dat-tiny', (2048, 2048))
    groups = [
        Group(
            'detection',
            (tiny, tiny_pp, reference(tiny), peer(tiny, SWIN), peer(tiny, MM_SWIN)),
            2,
            (
                Target('dat-tiny, 800x1280, inference: speed over the reference', 'speed', 4, (tiny, reference(tiny))),
                Target(
                    'dat-tiny, 800x1280, inference: memory over the reference', 'memory', 1 / 3, (tiny, reference(tiny))
                ),
                Target("dat-tiny, 800x1280, inference: time over Swin-T's", 'time', 1.4, (tiny, peer(tiny, SWIN))),
                Target("datpp-tiny, 800x1280, inference: time over Swin-T's", 'time', 1.5, (tiny_pp, peer(tiny, SWIN))),
            ),
            launches=3,
        ),
        Group(
            'training-512',
            (step, lean, reference(step)),
            3,
            (
                Target(
                    'dat-tiny, 512x512, training step: speed over the reference', 'speed', 2, (step, reference(step))
                ),
                Target(
                    'dat-tiny, 512x512, training step: memory over the reference',
                    'memory',
                    0.5,
                    (step, reference(step)),
                ),
                Target(
                    "the same with with_cp='auto': memory over the reference", 'memory', 0.6, (lean, reference(step))
                ),
                Target("with_cp='auto': time over that without it", 'time', 1.05, (lean, step)),
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
        cases = [ours, ours_pp, reference(ours), swin]
        if dtype == 'float32':  # mmpretrain's Swin does not run with weights in bfloat16
            cases.append(peer(ours, MM_SWIN))
        groups.append(Group(f'{mode}-224-{dtype}', tuple(cases), 3, tuple(targets), launches=4))
    groups.append(
        Group('2048', (huge,), 1, (Target('dat-tiny, 2048x2048, inference: peak memory, GB', 'peak', 6, (huge,)),))
    )
    groups.append(growth(Case('dat-tiny'), (256, 512, 768, 1024, 1280, 1536), (256, 512, 768, 1024), 3))
    return groups


def compiled(case: Case) -> Case:
    """Makes the same case with torch.compile."""
    return replace(case, compiled=True)


def gpu_suite() -> list[Group]:
    """Lists the targets on a GPU."""
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
                    'attention op, 50x80, forward + backward: speed over the reference', 'speed', 8, (op, reference(op))
                ),
                Target('attention op, 50x80, forward + backward: memory', 'memory', 1 / 20, (op, reference(op))),
            ),
        ),
        (replace(op, mode='inference'), ()),
    ):
        ways = [replace(case, backend=name) for name in ('dense', 'separable')]  # dense is PyTorch's fused attention
        groups.append(Group(f'op-{case.mode}', (case, *ways, reference(case), compiled(reference(case))), 20, targets))
    groups += [
        Group(
            'training-224',
            (step, reference(step), peer(step, SWIN), peer(step, MM_SWIN)),
            15,
            (
                Target(
                    'dat-tiny, 224, batch 128, training step: speed over the reference',
                    'speed',
                    1.5,
                    (step, reference(step)),
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
            tuple(how(case) for case in (rate, reference(rate), peer(rate, SWIN)) for how in (replace, compiled)),
            15,
        ),
        Group('batches', tuple(replace(step, batch=n) for n in (16, 32, 64, 256)), 5),
    ]
    detection, targets = [], []
    for model in ('dat-tiny', 'datpp-tiny'):
        case = replace(tiny, model=model)
        what = f'{model}, 800x1280, batch 2, forward + backward'
        detection += [case, reference(case)]
        targets += [
            Target(f'{what}: speed over the reference', 'speed', 4, (case, reference(case))),
            Target(f'{what}: memory over the reference', 'memory', 1 / 4, (case, reference(case))),
            Target(f"{what}: rate over Swin-T's", 'speed', 0.7, (case, swin)),
        ]
    groups.append(Group('detection', (*detection, swin, peer(tiny, MM_SWIN)), 15, tuple(targets)))
    convnext = peer(base, CONVNEXT)
    title = "dat-base, 800x800, batch 2, inference: rate over ConvNeXt-B's"
    groups.append(
        Group('base', (base, reference(base), convnext), 15, (Target(title, 'speed', 0.8, (base, convnext)),))
    )
    case = Case('dat-tiny', dtype='bfloat16', device='cuda')
    groups.append(growth(case, (512, 768, 1024, 1280, 1536, 2048), (512, 768, 1024, 1280, 1536), 10))
    return groups


def elsewhere(case: Case) -> tuple[Case, Case]:
    """Makes the same case for ONNX Runtime and for OpenVINO."""
    return tuple(replace(case, runtime=runtime) for runtime in ('onnxruntime', 'openvino'))


def deploy_suite() -> list[Group]:
    """Lists the targets of exported models: PyTorch, ONNX Runtime and OpenVINO side by side on the CPU."""
    groups = []
    for model in ('dat-tiny', 'datpp-tiny'):
        case, targets = Case(model, (800, 1280)), []
        for other in elsewhere(case):
            what = f'{model}, 800x1280, {other.runtime}'
            targets += [
                Target(f"{what}: time over PyTorch's", 'time', 1.2, (other, case)),
                Target(f"{what}: memory over PyTorch's", 'memory', 2, (other, case)),
            ]
        groups.append(Group(f'detection-{model}', (case, *elsewhere(case)), 2, tuple(targets), launches=2))
    swin = Case(SWIN, (800, 1280), backend=None)
    groups.append(Group('detection-swin', (swin, *elsewhere(swin)), 2))
    case, cases, targets = Case('dat-tiny', batch=8, task='classify'), [], []
    for model in ('dat-tiny', 'datpp-tiny', SWIN):
        ours = peer(case, model) if model == SWIN else replace(case, model=model)
        others = elsewhere(ours)
        half = replace(others[1], dtype='bfloat16')
        cases += [ours, *others, half]
        if model == SWIN:
            continue
        targets += [
            Target(f"{model}, 224, batch 8, {x.runtime}: rate over PyTorch's", 'speed', 1.0, (x, ours)) for x in others
        ]
        title = f"{model}, 224, batch 8, openvino, bfloat16: rate over float32's"
        targets.append(Target(title, 'speed', 1.0, (half, others[1])))
    groups.append(Group('224', tuple(cases), 3, tuple(targets), launches=2))
    return groups


SUITES = {'cpu': cpu_suite, 'gpu': gpu_suite, 'deploy': deploy_suite}
