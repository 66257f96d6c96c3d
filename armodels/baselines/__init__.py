"""Baselines: density models without a network, fitted in closed form or by EM."""

from armodels.baselines.categoricals import MixtureOfCategoricals
from armodels.baselines.counting import Histogram, Independent, Uniform
from armodels.baselines.gmm import GMM

__all__ = ["GMM", "Histogram", "Independent", "MixtureOfCategoricals", "Uniform"]
