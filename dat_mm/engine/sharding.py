# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""FSDP through mmengine's strategy: parameters, gradients and the optimizer's state are divided among the processes."""

from functools import partial
from pathlib import Path

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import STRATEGIES
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from ..models.blocks import Block, ConvBlock
from ..weights import written_whole


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy with the blocks of DAT as the units that are gathered, on GPUs and on CPUs.

    Checkpoints hold the whole model, so that all tools read them.
    """

    def __init__(self, *, model_wrapper: dict | None = None, state_dict_cfg: dict | None = None, **kwargs):
        blocks = partial(transformer_auto_wrap_policy, transformer_layer_cls={Block, ConvBlock})
        wrapper = dict(type='MMFullyShardedDataParallel', use_orig_params=True, auto_wrap_policy=blocks)
        on_gpu = get_device() != 'cpu'
        if not on_gpu:
            wrapper['device_id'] = torch.device('cpu')
        whole = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', offload_to_cpu=on_gpu, rank0_only=on_gpu),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', offload_to_cpu=on_gpu, rank0_only=on_gpu),
        )
        wrapper = {**wrapper, **(model_wrapper or {})}
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg or whole, **kwargs)

    def build_optim_wrapper(self, optim_wrapper, model=None):
        """Builds the optimizer by the shapes of whole parameters, and has gradients clipped by their norm as a whole.

        A process sees flat parts otherwise: rules about one-dimensional parameters would hold for all of them.
        """
        with FullyShardedDataParallel.summon_full_params(model):
            built = super().build_optim_wrapper(optim_wrapper, model)
        if built.clip_grad_kwargs:
            built.clip_func = lambda parameters, **options: model.clip_grad_norm_(**options)
        return built

    def save_checkpoint(self, filename: str, **options) -> None:
        """Saves a checkpoint as mmengine does, but the file of a whole model appears whole or not at all."""
        if not (self._is_full_state_dict() and is_main_process()):
            return super().save_checkpoint(filename, **options)
        with written_whole(Path(filename)) as partial:
            super().save_checkpoint(str(partial), **options)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Loads the state of the optimizer; mmengine passes it on in the order of arguments before torch 2.1."""
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict)
        )
