"""Runs exported detectors with numpy, OpenCV and ONNX Runtime or OpenVINO alone: no torch, nothing else of this project.

The folder can be copied to where detection happens. What its files hold is written by export.py and described in
docs/export.md.
"""
