"""Chain of Hindsight: language models that learn from human feedback in any form, and obey its words afterwards.

>>> import coh
>>> coh.FeedbackGroup("demo", (coh.Message("user", "2 + 2?"),), outputs=("4", "5"), ranks=(1, 2)).outputs
('4', '5')
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coh.api import train
    from coh.data.coh_data import CoHDataset, load_datasets
    from coh.data.data_args import CoHDataArgs
    from coh.data.records import FeedbackGroup, Message
    from coh.experiment import ExperimentArgs
    from coh.steered import SteeredModel, load
    from coh.train_args import CoHTrainArgs
    from coh.trainer import CoHTrainer

__version__ = "0.1.0"

# Where each name lives. It is imported when it is asked for: torch and transformers take seconds.
_HOMES = {
    "CoHDataArgs": "coh.data.data_args",
    "CoHDataset": "coh.data.coh_data",
    "CoHTrainArgs": "coh.train_args",
    "CoHTrainer": "coh.trainer",
    "ExperimentArgs": "coh.experiment",
    "FeedbackGroup": "coh.data.records",
    "Message": "coh.data.records",
    "SteeredModel": "coh.steered",
    "load": "coh.steered",
    "load_datasets": "coh.data.coh_data",
    "train": "coh.api",
}

__all__ = [
    "CoHDataArgs",
    "CoHDataset",
    "CoHTrainArgs",
    "CoHTrainer",
    "ExperimentArgs",
    "FeedbackGroup",
    "Message",
    "SteeredModel",
    "load",
    "load_datasets",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'coh' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
