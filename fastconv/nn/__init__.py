"""Layers with a forward and a backward each, with torch's names, defaults and state_dict keys."""

from fastconv.nn import models
from fastconv.nn.activation import Dropout, LeakyReLU, ReLU, ReLU6, Softmax
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d, ConvTranspose2d
from fastconv.nn.head import replace_head
from fastconv.nn.init import manual_seed
from fastconv.nn.linear import Linear
from fastconv.nn.local import LocallyConnected2d
from fastconv.nn.loss import CrossEntropyLoss, MSELoss
from fastconv.nn.memory import activation_bytes
from fastconv.nn.module import Buffer, Module, Parameter
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pattern import convnet
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, LPPool2d, MaxPool2d
from fastconv.nn.receptive import ReceptiveField, receptive_field
from fastconv.nn.shape import Flatten
from fastconv.nn.sliding_window import dense_scores, to_fully_convolutional

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Buffer",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "LPPool2d",
    "LeakyReLU",
    "Linear",
    "LocallyConnected2d",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "ReLU6",
    "ReceptiveField",
    "Residual",
    "Sequential",
    "Softmax",
    "activation_bytes",
    "convnet",
    "dense_scores",
    "manual_seed",
    "models",
    "receptive_field",
    "replace_head",
    "to_fully_convolutional",
]
