"""Optimizers with torch's update rules, argument names and defaults."""

from fastconv.optim.adagrad import Adagrad
from fastconv.optim.adam import Adam
from fastconv.optim.groups import parameter_groups
from fastconv.optim.optimizer import Optimizer
from fastconv.optim.rmsprop import RMSprop
from fastconv.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "Optimizer", "RMSprop", "parameter_groups"]
