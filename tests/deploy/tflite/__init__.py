"""TFLite files against ONNX Runtime."""
