"""VGG-19 with batch normalization for Animal-10N (method 2)."""

from torch import nn
from torchvision import models


def vgg19_bn(num_class: int = 10) -> nn.Module:
    """torchvision's VGG-19-BN, not pre-trained, its last layer a fresh Linear(4096, num_class).

    It gives logits [batch, num_class] of float images [batch, 3, height, width], normalized,
    at least 32 pixels a side. Parameter names are torchvision's.
    """
    network = models.vgg19_bn(weights=None)
    network.classifier[-1] = nn.Linear(4096, num_class)
    return network
