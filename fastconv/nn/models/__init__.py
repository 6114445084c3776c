"""Well-known networks, with torchvision's names of parameters, so that published checkpoints load.

A network is a `Sequential` whose parts are attributes: ``resnet18().fc`` is its last layer. First values are drawn as
in torchvision.
"""

from fastconv.nn.models.alexnet import alexnet, zfnet
from fastconv.nn.models.mobilenet import mobilenet_v2
from fastconv.nn.models.resnet import resnet18, resnet50
from fastconv.nn.models.vgg import vgg16, vgg19

__all__ = ["alexnet", "mobilenet_v2", "resnet18", "resnet50", "vgg16", "vgg19", "zfnet"]
