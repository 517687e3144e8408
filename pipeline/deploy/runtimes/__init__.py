"""Exported students for other runtimes than ONNX Runtime, each compared with the float file on rows of the store."""
