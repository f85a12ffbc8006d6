"""Export to ONNX and OpenVINO: graphs, their metadata, and the comparison with torch after writing."""
