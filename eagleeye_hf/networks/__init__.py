"""Small networks that timm lacks, registered with timm."""

from eagleeye_hf.networks.cifar_resnet import CifarResNet, resnet20_cifar, resnet56_cifar

__all__ = ["CifarResNet", "resnet20_cifar", "resnet56_cifar"]
