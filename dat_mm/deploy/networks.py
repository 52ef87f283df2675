# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Models of the toolboxes as networks: an image tensor in, a dict of tensors of fixed ranks out, all of it one graph.

The toolboxes' own `predict` cannot be exported: it loops over images and levels, filters by score and calls int() on
sizes. What follows computes the same from the same layers. An image is (B, H, W, 3) in bytes, or (B, 3, H, W) after
Preprocessing where that stays outside.

B images, N rows of detections, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .boxes import NONE, as_regions, best, only_above, paste, suppress, take
from .pixels import Pixels, Preprocessing, pad

CANDIDATES = 4096  # of an image that are compared with each other, the best of them; mmdet compares all


class Network(nn.Module):
    """A model as one graph. Its subclasses map a preprocessed image to their outputs.

    Args:
        preprocessing: what is done to pixels.
        inside: whether the graph does it. Otherwise the caller does, but for the padding.
    """

    task = ''
    outputs: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, inside: bool = True):
        super().__init__()
        self.model = model
        self.pixels = Pixels(preprocessing) if inside else None
        self.divisor = preprocessing.divisor

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.pixels(image) if self.pixels is not None else image
        found = self.run(pad(x, self.divisor), *x.shape[2:])
        return {name: found[name] for name in self.outputs}

    def run(self, x: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """The outputs for a padded image, of which height and width are filled."""
        raise NotImplementedError


class Backbone(Network):
    """The maps of a bare backbone, finest first."""

    task = 'backbone'

    def __init__(self, model, preprocessing, inside=True):
        super().__init__(model, preprocessing, inside)
        self.outputs = tuple(f'stage{i + 1}' for i in model.out_indices)

    def run(self, x, height, width):
        return dict(zip(self.outputs, self.model(x), strict=True))


class Classifier(Network):
    """The probability of each class."""

    task = 'classification'
    outputs = ('scores',)

    def run(self, x, height, width):
        return {'scores': self.model(x, mode='tensor').softmax(-1)}


class AveragePool(nn.Module):
    """Adaptive average pooling to a fixed size, as two products, at any size of the map."""

    def __init__(self, size):
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        along_y, along_x = (self.shares(n, m, x) for n, m in zip(x.shape[2:], self.size, strict=True))
        return along_y @ x @ along_x.transpose(0, 1)

    @staticmethod
    def shares(n: int, m: int, like: Tensor) -> Tensor:
        """The share (m, n) that each of n pixels has in each of m averages."""
        bin_, pixel = (torch.arange(count, device=like.device) for count in (m, n))
        start, end = bin_ * n // m, ((bin_ + 1) * n + m - 1) // m
        inside = (pixel >= start[:, None]) & (pixel < end[:, None])
        return inside.to(like.dtype) / (end - start)[:, None].to(like.dtype)


class Upsampling(nn.Module):
    """The upsampling of mmseg by a factor, without its int() of sizes, which would fix them in a graph."""

    def __init__(self, scale_factor, mode, align_corners):
        super().__init__()
        self.options = dict(scale_factor=scale_factor, mode=mode, align_corners=align_corners)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, **self.options)


class Segmentor(Network):
    """The class of each pixel of the image, and the logits (B, C, h, w) of the head, which are coarser."""

    task = 'segmentation'
    outputs = ('labels', 'logits')

    def __init__(self, model, preprocessing, inside=True):
        super().__init__(model, preprocessing, inside)
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(parent, name, AveragePool(child.output_size))
                elif type(child).__name__ == 'Upsample' and child.size is None:
                    setattr(parent, name, Upsampling(child.scale_factor, child.mode, child.align_corners))

    def run(self, x, height, width):
        head = self.model.decode_head
        logits = head(self.model.extract_feat(x))
        resized = F.interpolate(logits, x.shape[2:], mode='bilinear', align_corners=self.model.align_corners)
        resized = resized[:, :, :height, :width]
        one = self.model.out_channels == 1
        labels = (resized.sigmoid() > head.threshold)[:, 0].long() if one else resized.argmax(1)
        return {'labels': labels, 'logits': logits}


class Detector(Network):
    """Boxes (B, N, 4), scores (B, N) and labels (B, N), the best first.

    A row without a detection has an empty box, and -1 as score and label.
    """

    task = 'detection'
    outputs = ('boxes', 'scores', 'labels')

    def candidates(self, head, maps, shape):
        """The best places of each level of a dense head: boxes (B, n, 4), scores, labels and level of each (B, n)."""
        cfg = head.test_cfg
        classes, deltas = head(maps)[:2]
        priors = head.prior_generator.grid_priors(
            [x.shape[2:] for x in classes], dtype=classes[0].dtype, device=classes[0].device
        )
        found = []
        for level, (score, delta, prior) in enumerate(zip(classes, deltas, priors, strict=True)):
            score = score.permute(0, 2, 3, 1).flatten(1, 3).unflatten(1, (-1, head.cls_out_channels))
            score = score.sigmoid() if head.use_sigmoid_cls else score.softmax(-1)[..., :-1]
            count = score.shape[2]
            delta = delta.permute(0, 2, 3, 1).flatten(1, 3).unflatten(1, (-1, 4))
            score, place = best(score.flatten(1), cfg.get('nms_pre', CANDIDATES))
            row, label = place // count, place % count
            found.append((prior[row], take(delta, row), score, label, torch.full_like(label, level)))
        prior, delta, score, label, level = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        box = head.bbox_coder.decode(prior.flatten(0, 1), delta.flatten(0, 1), max_shape=shape)
        return box.unflatten(0, score.shape), score, label, level

    def drop_small(self, box: Tensor, score: Tensor, cfg) -> Tensor:
        """The scores with NONE for boxes that are not larger than min_bbox_size of a config."""
        smallest = cfg.get('min_bbox_size', -1)
        if smallest < 0:
            return score
        sides = box[..., 2:] - box[..., :2]
        return torch.where((sides > smallest).all(-1), score, NONE)

    def finish(self, box, score, label, cfg) -> dict[str, Tensor]:
        """The detections that suppression leaves, as outputs."""
        score = suppress(box, score, label, cfg.nms.iou_threshold)
        score, place = best(score, cfg.max_per_img)
        real = score > NONE
        box = torch.where(real[..., None], take(box, place), 0.0)
        return {'boxes': box, 'scores': score, 'labels': torch.where(real, take(label, place), -1)}


class OneStage(Detector):
    """RetinaNet, and other detectors with one dense head that decodes anchors."""

    def run(self, x, height, width):
        head = self.model.bbox_head
        box, score, label, _ = self.candidates(head, self.model.extract_feat(x), (height, width))
        score = only_above(score, head.test_cfg.get('score_thr', 0))
        score = self.drop_small(box, score, head.test_cfg)
        return self.finish(box, score, label, head.test_cfg)


class TwoStages(Detector):
    """Faster, Mask and Cascade R-CNN.

    With a mask head there are `box_masks` (B, N, S, S), what is in each box from 0 to 1, and where `pasted` asks for
    them, `masks` (B, N, H, W), the same in the image and above the threshold of the config.
    """

    def __init__(self, model, preprocessing, inside=True, *, pasted: bool = True):
        super().__init__(model, preprocessing, inside)
        self.pasted = pasted
        if model.roi_head.with_mask:
            self.outputs = (*self.outputs, 'box_masks', *(['masks'] if pasted else []))

    @staticmethod
    def each(parts, stage: int):
        """The part of a stage: a cascade has a list of them."""
        return parts[stage] if isinstance(parts, nn.ModuleList) else parts

    def proposals(self, maps, shape):
        head = self.model.rpn_head
        cfg = head.test_cfg
        box, score, _, level = self.candidates(head, maps, shape)
        score = suppress(box, self.drop_small(box, score, cfg), level, cfg.nms.iou_threshold)
        score, place = best(score, cfg.max_per_img)
        return take(box, place), score > NONE

    def pool(self, extractor, maps, boxes: Tensor) -> Tensor:
        """The features (B n, C, S, S) of boxes (B, n, 4), each from the level that its size belongs to.

        Every level pools all boxes, with those of other levels emptied: no size depends on what is in the picture.
        """
        from torchvision.ops import roi_align

        regions = as_regions(boxes)
        maps = maps[: extractor.num_inputs]
        level = extractor.map_roi_levels(regions, len(maps))
        pooled = 0
        for i, (x, layer) in enumerate(zip(maps, extractor.roi_layers, strict=True)):
            here = (level == i)[:, None].to(regions.dtype)
            boxes = torch.cat((regions[:, :1], regions[:, 1:] * here), 1)
            size, count = layer.output_size, layer.sampling_ratio
            part = roi_align(x, boxes, size, layer.spatial_scale, count, layer.aligned)
            # an empty box has no samples, and 0 comes out, unless the number of samples is fixed
            pooled = pooled + (part * here[..., None, None] if count > 0 else part)
        return pooled

    def run(self, x, height, width):
        shape = height, width
        maps = self.model.extract_feat(x)
        roi_head = self.model.roi_head
        boxes, real = self.proposals(maps, shape)
        logits, stages = [], getattr(roi_head, 'num_stages', 1)
        for stage in range(stages):
            head = self.each(roi_head.bbox_head, stage)
            logit, delta = head(self.pool(self.each(roi_head.bbox_roi_extractor, stage), maps, boxes))
            logits.append(logit)
            if stage + 1 < stages:
                label = logit[:, :-1].argmax(1)
                moved = head.regress_by_class(boxes.flatten(0, 1), label, delta, {'img_shape': shape})
                boxes = moved.unflatten(0, boxes.shape[:2])
        score = (sum(logits) / stages).softmax(-1)[:, :-1].unflatten(0, boxes.shape[:2])  # (B, n, C)
        cfg, count = roi_head.test_cfg, score.shape[2]
        score = torch.where(real[..., None], only_above(score, cfg.score_thr), NONE)
        score, place = best(score.flatten(1), CANDIDATES)
        row, label = place // count, place % count
        delta = delta.unflatten(0, boxes.shape[:2])
        if not head.reg_class_agnostic:
            delta = delta.unflatten(2, (-1, 4)).flatten(1, 2)
        delta = take(delta, row if head.reg_class_agnostic else place)
        box = head.bbox_coder.decode(take(boxes, row).flatten(0, 1), delta.flatten(0, 1), max_shape=shape)
        found = self.finish(box.unflatten(0, score.shape), score, label, cfg)
        if roi_head.with_mask:
            found['box_masks'] = self.masks(maps, found)
            if self.pasted:
                pasted = paste(found['box_masks'], found['boxes'], height, width, cfg.mask_thr_binary)
                found['masks'] = pasted & (found['scores'] > NONE)[..., None, None]
        return found

    def masks(self, maps, found) -> Tensor:
        roi_head, label = self.model.roi_head, found['labels'].clamp(min=0).flatten()
        masks = []
        for stage in range(getattr(roi_head, 'num_stages', 1)):
            head = self.each(roi_head.mask_head, stage)
            x = head(self.pool(self.each(roi_head.mask_roi_extractor, stage), maps, found['boxes']))
            if not head.class_agnostic:
                x = x.gather(1, label[:, None, None, None].expand(-1, -1, *x.shape[2:]))
            masks.append(x[:, 0].sigmoid())
        return (sum(masks) / len(masks)).unflatten(0, found['scores'].shape)


def wrap(model: nn.Module, preprocessing: Preprocessing, inside: bool = True, *, pasted: bool = True) -> Network:
    """Makes the network of a toolbox's model, or of a bare backbone, from what it is made of."""
    model = model.eval()
    kind, parts = type(model).__name__, {name: type(part).__name__ for name, part in model.named_children()}
    if kind == 'EncoderDecoder' and hasattr(model.decode_head, 'conv_seg'):
        return Segmentor(model, preprocessing, inside)
    if parts.get('roi_head') in ROI_HEADS and parts.get('rpn_head') in DENSE_HEADS:
        return TwoStages(model, preprocessing, inside, pasted=pasted)
    if 'roi_head' not in parts and parts.get('bbox_head') in DENSE_HEADS:
        return OneStage(model, preprocessing, inside)
    if kind == 'ImageClassifier':
        return Classifier(model, preprocessing, inside)
    if hasattr(model, 'out_indices'):
        return Backbone(model, preprocessing, inside)
    heads = [f'{name}={part}' for name, part in parts.items() if name.endswith('head')]
    raise UserError(f'{" with ".join([kind, *heads[:1]])} has no form for export; there are: {", ".join(KINDS)}')


DENSE_HEADS = ('RetinaHead', 'RetinaSepBNHead', 'RPNHead')  # two outputs of each level, anchors and a coder of boxes
ROI_HEADS = ('StandardRoIHead', 'CascadeRoIHead')
KINDS = ('ImageClassifier', 'EncoderDecoder', 'RetinaNet', 'Faster, Mask and Cascade R-CNN', 'a bare backbone')
