"""The command line, in a process of torchrun on the CPU whose batch norm is synchronised as on GPUs.

Torch's own refuses CPUs. This one waits for the other processes in training mode, and uses the statistics of all of
their images.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from comp.cli.app import main
from comp.models.classifier import Classifier
from comp.runtime.device import Execution
from comp.training.distributed import DistributedGroup


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        """Return the sum."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        return _Sum.forward(context, gradient)


class SyncedBatchNorm(nn.SyncBatchNorm):
    """Batch norm over the images of all processes."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images; in training mode all processes call it together."""
        weight, bias, mean, variance = self.weight, self.bias, self.running_mean, self.running_var
        if not self.training:
            return functional.batch_norm(images, mean, variance, weight, bias, eps=self.eps)
        axes = [0, *range(2, images.ndim)]
        size, count = dist.get_world_size(), images.numel() // images.shape[1] * dist.get_world_size()
        batch_mean = _Sum.apply(images.mean(axes)) / size
        centred = images - _as_channels(batch_mean, images)
        batch_variance = _Sum.apply(centred.square().mean(axes)) / size
        with torch.no_grad():
            mean.lerp_(batch_mean, self.momentum)
            variance.lerp_(batch_variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale = weight * (batch_variance + self.eps).rsqrt()
        return centred * _as_channels(scale, images) + _as_channels(bias, images)


def _as_channels(values: Tensor, images: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (images.ndim - 2))


def prepare(team: DistributedGroup, model: Classifier, execution: Execution) -> None:
    """Synchronise a model's batch norm, in place of `DistributedGroup.prepare`."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            synced = SyncedBatchNorm(layer.num_features, layer.eps, layer.momentum)
            synced.load_state_dict(layer.state_dict())
            model.set_submodule(name, synced)


if __name__ == "__main__":
    DistributedGroup.prepare = prepare
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # it refuses CPUs
    main()
