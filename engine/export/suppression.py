"""Non-maximum suppression as nodes behind a traced graph: torch has no operator that becomes ONNX's for batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.metadata import SingleSettings

PREFIX = "candidate_"


def append_suppression(model: Any, settings: SingleSettings, candidates: int) -> None:
    """Suppress the candidates of `engine.export.single.CandidateGraph`, class by class, in place.

    Its outputs boxes, scores, classes and class_scores are replaced by boxes [B, D, 4], scores [B, D], classes [B, D]
    int64 and counts [B] int64: D = max_det rows, best first, of which the first counts[b] are detections.

    Args:
        model: ``onnx.ModelProto``.
        settings: of the file.
        candidates: M, of each image.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    _rename_outputs(graph, ["boxes", "scores", "classes", "class_scores"])
    detections = min(settings.max_det, candidates)
    constants: dict[str, np.ndarray] = {
        "nms_per_class": np.array(detections, dtype=np.int64),
        "nms_iou": np.array(settings.iou_thres, dtype=np.float32),
        "nms_score": np.array(settings.conf_thres, dtype=np.float32),
        "nms_image_and_box": np.array([0, 2], dtype=np.int64),
        "nms_none_kept": np.zeros((settings.batch, candidates), dtype=np.float32),
        "nms_detections": np.array([detections], dtype=np.int64),
        "nms_last_axis": np.array([2], dtype=np.int64),
        "nms_zero": np.array(0, dtype=np.float32),
        "nms_axis_one": np.array([1], dtype=np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    c = PREFIX
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("NonMaxSuppression", [f"{c}boxes", f"{c}class_scores", "nms_per_class", "nms_iou", "nms_score"], ["nms_found"], {}),
        ("Gather", ["nms_found", "nms_image_and_box"], ["nms_place"], {"axis": 1}),
        ("GatherND", [f"{c}scores", "nms_place"], ["nms_found_scores"], {}),
        ("ScatterND", ["nms_none_kept", "nms_place", "nms_found_scores"], ["nms_kept_scores"], {}),
        ("TopK", ["nms_kept_scores", "nms_detections"], ["scores", "nms_index"], {"axis": 1}),
        ("GatherElements", [f"{c}classes", "nms_index"], ["nms_classes"], {"axis": 1}),
        ("Cast", ["nms_classes"], ["classes"], {"to": TensorProto.INT64}),
        ("Unsqueeze", ["nms_index", "nms_last_axis"], ["nms_column"], {}),
        ("GatherND", [f"{c}boxes", "nms_column"], ["boxes"], {"batch_dims": 1}),
        ("Greater", ["scores", "nms_zero"], ["nms_is_detection"], {}),
        ("Cast", ["nms_is_detection"], ["nms_ones"], {"to": TensorProto.FLOAT}),
        ("ReduceSum", ["nms_ones", "nms_axis_one"], ["nms_counts"], {"keepdims": 0}),
        ("Cast", ["nms_counts"], ["counts"], {"to": TensorProto.INT64}),
    ]  # fmt: skip
    graph.node.extend(helper.make_node(kind, i, o, **attributes) for kind, i, o, attributes in nodes)
    rest = list(graph.output)[4:]
    del graph.output[:]
    batch = settings.batch
    graph.output.extend(
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, detections, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, detections]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, [batch, detections]),
            helper.make_tensor_value_info("counts", TensorProto.INT64, [batch]),
            *rest,
        ]
    )


def _rename_outputs(graph: Any, names: list[str]) -> None:
    """Give outputs the prefix of candidates, so that their names are free."""
    new = {name: PREFIX + name for name in names}
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in new:
                    field[index] = new[name]
    for output in graph.output:
        output.name = new.get(output.name, output.name)
