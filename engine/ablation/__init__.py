"""Experiments that change one thing at a time (``scripts/ablation.py``)."""
