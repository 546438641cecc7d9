"""Labelled data, split into train, search validation and test. Imports no torch; Pillow when it decodes."""

from hwnas.data.dataset import Augmentation, Dataset, SearchData, Split, TestData
from hwnas.data.load import load_data

__all__ = ["Augmentation", "Dataset", "SearchData", "Split", "TestData", "load_data"]
