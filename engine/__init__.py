"""The engine: the only layer that sees network, data and evaluation together."""

from __future__ import annotations

from engine.evaluation import Evaluation, evaluate
from engine.inference import Detector, load_model
from engine.prediction import Prediction
from engine.setup import TrainingRun, build_run
from engine.training import fit, train_one_epoch

__all__ = [
    "Detector",
    "Evaluation",
    "Prediction",
    "TrainingRun",
    "build_run",
    "evaluate",
    "fit",
    "load_model",
    "train_one_epoch",
]
