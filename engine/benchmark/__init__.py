"""The speed yardstick behind scripts/benchmark.py: variants of a model, given heatmaps, interleaved timing, the report.

What a detector costs on real images says engine/measure.py; here the share of the map that is kept is given.
"""
