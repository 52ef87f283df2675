# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""DAT as the backbone of the toolboxes' own models: each builds, has finite losses and predicts, on the CPU.

Detectors are configs of the installed mmdet, one of each of its folders. Segmentors are mmseg's base models, and
classifiers heads and necks of mmpretrain. `python tests/test_heads.py` writes the tables of docs/use.md from the cases.
"""

import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData

from dat_mm.commands.config import nodes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/use.md'
CONFIGS = ROOT / 'configs'
CHANNELS = [32, 64, 128, 192]  # of dat-nano
# name: config in mmdet's folder of configs
DETECTORS = {
    'ATSS': 'atss/atss_r50_fpn_1x_coco',
    'AutoAssign': 'autoassign/autoassign_r50-caffe_fpn_1x_coco',
    'BoxInst': 'boxinst/boxinst_r50_fpn_ms-90k_coco',
    'Cascade R-CNN': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
    'Cascade RPN': 'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco',
    'CenterNet': 'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco',
    'CondInst': 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance',
    'Conditional DETR': 'conditional_detr/conditional-detr_r50_8xb2-50e_coco',
    'CrowdDet': 'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman',
    'DAB-DETR': 'dab_detr/dab-detr_r50_8xb2-50e_coco',
    'DDQ': 'ddq/ddq-detr-4scale_r50_8xb2-12e_coco',
    'Deformable DETR': 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco',
    'DETR': 'detr/detr_r50_8xb2-150e_coco',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco',
    'Double-Head R-CNN': 'double_heads/dh-faster-rcnn_r50_fpn_1x_coco',
    'DyHead': 'dyhead/atss_r50_fpn_dyhead_1x_coco',
    'Dynamic R-CNN': 'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco',
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'FoveaBox': 'foveabox/fovea_r50_fpn_4xb4-1x_coco',
    'FPG': 'fpg/faster-rcnn_r50_fpg_crop640-50e_coco',
    'FreeAnchor': 'free_anchor/freeanchor_r50_fpn_1x_coco',
    'FSAF': 'fsaf/fsaf_r50_fpn_1x_coco',
    'GFL': 'gfl/gfl_r50_fpn_1x_coco',
    'GHM': 'ghm/retinanet_r50_fpn_ghm-1x_coco',
    'Grid R-CNN': 'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco',
    'GRoIE': 'groie/mask-rcnn_r50_fpn_groie_1x_coco',
    'HTC': 'htc/htc_r50_fpn_1x_coco',
    'Libra R-CNN': 'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco',
    'Mask2Former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'MaskFormer': 'maskformer/maskformer_r50_ms-16xb1-75e_coco',
    'Mask Scoring R-CNN': 'ms_rcnn/ms-rcnn_r50_fpn_1x_coco',
    'NAS-FCOS': 'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco',
    'NAS-FPN': 'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco',
    'PAFPN': 'pafpn/faster-rcnn_r50_pafpn_1x_coco',
    'Panoptic FPN': 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco',
    'PISA': 'pisa/faster-rcnn_r50_fpn_pisa_1x_coco',
    'PointRend': 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco',
    'RepPoints': 'reppoints/reppoints-moment_r50_fpn_1x_coco',
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco',
    'RPN': 'rpn/rpn_r50_fpn_1x_coco',
    'RTMDet': 'rtmdet/rtmdet_s_8xb32-300e_coco',
    'SABL': 'sabl/sabl-faster-rcnn_r50_fpn_1x_coco',
    'SCNet': 'scnet/scnet_r50_fpn_1x_coco',
    'SOLO': 'solo/solo_r50_fpn_1x_coco',
    'SOLOv2': 'solov2/solov2_r50_fpn_1x_coco',
    'Sparse R-CNN': 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco',
    'TOOD': 'tood/tood_r50_fpn_1x_coco',
    'VarifocalNet': 'vfnet/vfnet_r50_fpn_1x_coco',
    'YOLACT': 'yolact/yolact_r50_1xb8-55e_coco',
    'YOLOF': 'yolof/yolof_r50-c5_8xb8-1x_coco',
    'YOLOX': 'yolox/yolox_s_8xb8-300e_coco',
}
OTHER_BACKBONE = 'is about a backbone, or about layers inside of one'
OTHER_DATA = 'has heads that other folders have, for other data or with other training'
VIDEO = 'is of videos'
TEXT = 'needs a language model'
# mmdet's other folders, with the reason why no detector of them is tried
LEFT_OUT = {
    **dict.fromkeys(
        (
            *('convnext', 'dcn', 'dcnv2', 'detectors', 'efficientnet', 'empirical_attention', 'gcnet', 'gn', 'gn+ws'),
            *('hrnet', 'pvt', 'regnet', 'res2net', 'resnest', 'resnet_strikes_back', 'selfsup_pretrain', 'swin'),
            *('timm_example', 'tridentnet'),
        ),
        OTHER_BACKBONE,
    ),
    **dict.fromkeys(
        (
            *('albu_example', 'cityscapes', 'common', 'deepfashion', 'dsdl', 'instaboost', 'legacy_1.x', 'lvis'),
            *('misc', 'objects365', 'openimages', 'pascal_voc', 'scratch', 'seesaw_loss', 'simple_copy_paste'),
            *('soft_teacher', 'strong_baselines', 'v3det', 'wider_face', '_base_'),
        ),
        OTHER_DATA,
    ),
    **dict.fromkeys(
        (
            *('bytetrack', 'deepsort', 'mask2former_vis', 'masktrack_rcnn', 'ocsort', 'qdtrack', 'reid', 'sort'),
            *('strongsort',),
        ),
        VIDEO,
    ),
    **dict.fromkeys(('glip', 'grounding_dino', 'mm_grounding_dino'), TEXT),
    'clrnet': 'finds lanes, and is in the OneDL fork alone',
    **dict.fromkeys(
        ('centripetalnet', 'cornernet', 'ssd', 'yolo'), 'has a backbone of its own: hourglass, VGG, Darknet'
    ),
    **dict.fromkeys(('lad', 'ld'), 'distils a teacher, which it needs weights of'),
    'fast_rcnn': 'needs proposals from a file',
    'paa': 'needs scikit-learn',
    **dict.fromkeys(('carafe', 'guided_anchoring'), 'has an op of mmcv that only GPUs have'),
    'ddod': 'has deformable convolutions that want larger maps than the small images of this test give',
    'queryinst': 'predicts boxes outside of the image with random weights, whose masks mmdet cannot paste on a CPU',
}
SEMANTIC_STRIDE = {'HTC': 8, 'SCNet': 8}  # of the truth about pixels that these heads want
WITHOUT_MASKS = {'RTMDet'}  # in the truth: what it does with these is for its other heads
# name: base model in mmseg's folder
SEGMENTORS = {
    'ANN': 'ann_r50-d8',
    'APCNet': 'apcnet_r50-d8',
    'CCNet': 'ccnet_r50-d8',
    'DANet': 'danet_r50-d8',
    'DeepLabV3': 'deeplabv3_r50-d8',
    'DeepLabV3+': 'deeplabv3plus_r50-d8',
    'DMNet': 'dmnet_r50-d8',
    'DNLNet': 'dnl_r50-d8',
    'EMANet': 'emanet_r50-d8',
    'EncNet': 'encnet_r50-d8',
    'FastFCN': 'fastfcn_r50-d32_jpu_psp',
    'FCN': 'fcn_r50-d8',
    'GCNet': 'gcnet_r50-d8',
    'ISANet': 'isanet_r50-d8',
    'NonLocal': 'nonlocal_r50-d8',
    'PointRend': 'pointrend_r50',
    'PSANet': 'psanet_r50-d8',
    'PSPNet': 'pspnet_r50-d8',
    'SegFormer': 'segformer_mit-b0',
    'Semantic FPN': 'fpn_r50',
    'UperNet': 'upernet_r50',
}
GAP = dict(type='GlobalAveragePooling')
# name: (out_indices, neck, head) of an mmpretrain classifier
CLASSIFIERS = {
    'LinearClsHead': ((3,), GAP, dict(type='LinearClsHead', num_classes=5, in_channels=192)),
    'StackedLinearClsHead': (
        (3,),
        GAP,
        dict(type='StackedLinearClsHead', num_classes=5, in_channels=192, mid_channels=[64]),
    ),
    'ArcFaceClsHead': ((3,), GAP, dict(type='ArcFaceClsHead', num_classes=5, in_channels=192)),
    'MultiLabelLinearClsHead': ((3,), GAP, dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=192)),
    'CSRAClsHead': ((3,), None, dict(type='CSRAClsHead', num_classes=5, in_channels=192, num_heads=1, lam=0.1)),
    'generalized mean pooling': (
        (3,),
        dict(type='GeneralizedMeanPooling'),
        dict(type='LinearClsHead', num_classes=5, in_channels=192),
    ),
    'HRFuseScales': (
        (0, 1, 2, 3),
        [dict(type='HRFuseScales', in_channels=CHANNELS), GAP],
        dict(type='LinearClsHead', num_classes=5, in_channels=2048),
    ),
}


def folder_of_configs(toolbox):
    module = pytest.importorskip(toolbox)
    import_module(f'{toolbox}.utils').register_all_modules(init_default_scope=False)
    return Path(module.__file__).parent / '.mim/configs'


def dat(stages):
    return dict(type='dat_mm.DAT', arch='dat-nano', img_size=64, out_indices=stages)


def plug_into_detector(model):
    """Puts DAT into the config of a detector, as a user would, and returns (out_indices, what got its channels)."""
    neck = model.get('neck')
    first = neck[0] if isinstance(neck, list) else neck
    part, name = (first, 'neck') if first else (model.panoptic_head, 'panoptic_head')
    several = isinstance(part.in_channels, (list, tuple))
    count = len(part.in_channels) if several else 1
    stages = (0, 1, 2, 3)[-count:]
    model.backbone = Config(dat(stages))
    part.in_channels = CHANNELS[-count:] if several else CHANNELS[-1]
    return stages, f'{name}.in_channels'


def plug_into_segmentor(model):
    """Puts DAT into the config of a segmentor, and returns (out_indices, what got its channels)."""
    model.pop('pretrained', None)
    model.backbone = Config(dat((0, 1, 2, 3)))
    neck = model.get('neck')
    names = []
    if neck:
        count = len(neck.in_channels)
        neck.in_channels = type(neck.in_channels)(CHANNELS[-count:])
        if count == 4:
            return (0, 1, 2, 3), 'neck.in_channels'
        # FastFCN's neck makes the last of three maps, and the head beside it takes the second as it is
        model.backbone.out_indices = (1, 2, 3)
        model.auxiliary_head.in_channels = CHANNELS[2]
        return (1, 2, 3), 'neck.in_channels, auxiliary_head.in_channels'
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        for head in heads if isinstance(heads, list) else [heads]:
            index = head.get('in_index', -1)
            head.in_channels = [CHANNELS[i] for i in index] if isinstance(index, (list, tuple)) else CHANNELS[index]
            if 'c1_in_channels' in head:
                head.c1_in_channels = CHANNELS[0]
        if heads:
            names.append(f'{name}.in_channels')
    return (0, 1, 2, 3), ', '.join(names)


def detector_config(name):
    cfg = Config.fromfile(folder_of_configs('mmdet') / f'{DETECTORS[name]}.py').model
    if 'num_queries' in cfg:
        cfg.num_queries = 20  # 900 are more than the tokens of a small image
        cfg.test_cfg.max_per_img = 20
    if cfg.type == 'SparseRCNN':
        cfg.rpn_head.num_proposals = 20
        cfg.test_cfg.rcnn.max_per_img = 20
    for node in nodes(cfg):  # few regions, which are what takes long
        if {'nms_pre', 'max_per_img'} <= set(node):
            node.max_per_img = 20
        if 'pos_fraction' in node:
            node.num = 16
    cfg.get('data_preprocessor', {}).pop('batch_augments', None)  # these pad to the size of the training
    return cfg, *plug_into_detector(cfg)


def segmentor_config(name):
    cfg = Config.fromfile(folder_of_configs('mmseg') / f'_base_/models/{SEGMENTORS[name]}.py').model
    cfg.data_preprocessor.size = (64, 64)
    return cfg, *plug_into_segmentor(cfg)


def run(model, inputs):
    """Runs losses with gradients, and a prediction, of a model of any toolbox."""
    model = revert_sync_batchnorm(model)
    for unit in ('iter', 'epoch'):  # some losses ask a runner how far it is
        MessageHub.get_current_instance().update_info(unit, 0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.init_weights()
        model.train()
        data = model.data_preprocessor(inputs(), training=True)
        losses, _ = model.parse_losses(model(**data, mode='loss'))
        losses.backward()
        assert losses.isfinite()
        grads = [parameter.grad for parameter in model.backbone.parameters()]
        assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)
        model.eval()
        single = {key: value[:1] for key, value in inputs().items()}  # as the toolboxes test
        with torch.no_grad():
            (prediction,) = model(**model.data_preprocessor(single, training=False), mode='predict')
        return prediction


def try_detector(name):
    from mmdet.testing import demo_mm_inputs

    cfg, *_ = detector_config(name)

    def inputs():
        packed = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=2, with_mask=True, with_semantic=True)
        stride = SEMANTIC_STRIDE.get(name, 1)
        for sample in packed['data_samples']:
            sample.gt_instances.labels.zero_()  # a class that every head has
            truth = sample.gt_sem_seg.sem_seg
            sample.gt_sem_seg = PixelData(sem_seg=truth[..., ::stride, ::stride])
            if name in WITHOUT_MASKS:
                del sample.gt_instances.masks
        return packed

    with DefaultScope.overwrite_default_scope('mmdet'):
        return run(MODELS.build(cfg), inputs)


def try_segmentor(name):
    from mmseg.structures import SegDataSample

    cfg, *_ = segmentor_config(name)

    def inputs():
        samples = []
        for _ in range(2):
            sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, 64, 64))))
            sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64)))
            samples.append(sample)
        return dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)] * 2, data_samples=samples)

    with DefaultScope.overwrite_default_scope('mmseg'):
        return run(MODELS.build(cfg), inputs)


def try_classifier(name):
    from mmpretrain.structures import DataSample, MultiTaskDataSample  # noqa: F401

    stages, neck, head = CLASSIFIERS[name]
    folder_of_configs('mmpretrain')
    cfg = dict(type='ImageClassifier', backbone=dat(stages), neck=neck, head=head)
    kind = 'MultiLabelDataPreprocessor' if 'MultiLabel' in name or 'CSRA' in name else 'ClsDataPreprocessor'

    def inputs():
        samples = [DataSample().set_gt_label([label] if 'Multi' in kind else label) for label in (1, 3)]
        for sample in samples:
            sample.set_field(5, 'num_classes', field_type='metainfo')
        return dict(inputs=torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), data_samples=samples)

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        settings = dict(type='ClsDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, num_classes=5)
        settings['to_onehot'] = 'Multi' in kind
        return run(MODELS.build(dict(cfg, data_preprocessor=settings)), inputs)


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_of_mmdet(name):
    prediction = try_detector(name)
    assert 'pred_instances' in prediction or 'pred_panoptic_seg' in prediction


@pytest.mark.slow
@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors_of_mmseg(name):
    assert try_segmentor(name).pred_sem_seg.data.shape == (1, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers_of_mmpretrain(name):
    assert try_classifier(name).pred_score.shape == (5,)


@pytest.mark.slow
@pytest.mark.parametrize(
    'leaf',
    [
        'dino-3scale_datpp-nano_1xb4_shapes',
        'deformable-detr-refine-twostage_datpp-nano_1xb4_shapes',
        'mask2former_datpp-nano_1xb4_shapes-panoptic',
    ],
)
def test_frozen_stages_of_transformer_detectors_stay_as_they_are(leaf):
    folder_of_configs('mmdet')
    from mmdet.testing import demo_mm_inputs
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(CONFIGS / f'shapes/{leaf}.py')
    cfg.model.backbone.update(frozen_stages=2, with_cp=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).train()
        model.init_weights()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        before = {name: value.clone() for name, value in model.backbone.named_parameters()}
        packed = demo_mm_inputs(2, [[3, 96, 96]] * 2, num_classes=8, with_mask=True, with_semantic=True)
        model.train_step(packed, optimizer)
    moved = {name for name, value in model.backbone.named_parameters() if not torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith(('stem', 'stages.0', 'stages.1'))}
    assert frozen and not moved & frozen
    assert {name for name in before if name.startswith('stages.')} - frozen <= moved


def test_every_folder_of_mmdet_is_tried_or_left_out_for_a_reason():
    folders = {path.name for path in folder_of_configs('mmdet').iterdir() if path.is_dir()}
    tried = {config.partition('/')[0] for config in DETECTORS.values()}
    assert not tried & set(LEFT_OUT)
    assert folders <= tried | set(LEFT_OUT)


def tables():
    """The tables of the page: {mark: text}."""
    stages = lambda outs: ', '.join(map(str, outs)) + (',' if len(outs) == 1 else '')  # noqa: E731
    detectors = ['| Detector | config of mmdetection | out_indices | its channels go to |', '|---|---|---|---|']
    for name in sorted(DETECTORS, key=str.lower):
        _, outs, where = detector_config(name)
        detectors.append(f'| {name} | `{DETECTORS[name]}` | `({stages(outs)})` | `{where}` |')
    segmentors = ['| Head | base model of mmsegmentation | its channels go to |', '|---|---|---|']
    for name in sorted(SEGMENTORS, key=str.lower):
        _, _, where = segmentor_config(name)
        segmentors.append(f'| {name} | `{SEGMENTORS[name]}` | `{where}` |')
    classifiers = ['| Head or neck | out_indices |', '|---|---|']
    for name, (outs, _, head) in CLASSIFIERS.items():
        label = name if name == head['type'] else f'{name}, {head["type"]}'
        classifiers.append(f'| {label} | `({stages(outs)})` |')
    reasons = {}
    for folder, reason in LEFT_OUT.items():
        if folder != '_base_':
            reasons.setdefault(reason, []).append(f'`{folder}`')
    left_out = ['| Not tried | because each |', '|---|---|']
    left_out += [f'| {", ".join(folders)} | {reason} |' for reason, folders in reasons.items()]
    parts = dict(detectors=detectors, left_out=left_out, segmentors=segmentors, classifiers=classifiers)
    return {mark: '\n'.join(lines) for mark, lines in parts.items()}


def with_tables(text, found):
    for mark, table in found.items():
        pattern = rf'(<!-- {mark}, by tests/test_heads.py -->\n).*?(\n<!-- end of {mark} -->)'
        text, count = re.subn(pattern, lambda match, table=table: match[1] + table + match[2], text, flags=re.DOTALL)
        assert count == 1, mark
    return text


def test_the_page_has_these_tables():
    text = PAGE.read_text()
    assert text == with_tables(text, tables()), 'python tests/test_heads.py writes the tables'


if __name__ == '__main__':
    if sys.argv[1:2] == ['--try']:  # says of each whether it works, for a new version of a toolbox
        import time

        from mmengine.logging import MMLogger

        MMLogger.get_current_instance().setLevel('ERROR')
        for kind, attempt in ((DETECTORS, try_detector), (SEGMENTORS, try_segmentor), (CLASSIFIERS, try_classifier)):
            for case in [name for name in kind if name in sys.argv[2:] or not sys.argv[2:]]:
                start = time.process_time()
                try:
                    attempt(case)
                    result = 'works'
                except Exception as error:
                    result = f'{type(error).__name__}: {str(error).strip()[:120]!r}'
                print(f'{case}: {result} ({time.process_time() - start:.1f} s of CPU)', flush=True)
    else:
        PAGE.write_text(with_tables(PAGE.read_text(), tables()))
