"""TensorFlow Lite files written from quantised ONNX graphs: same integers, same scales, no converter's runtime."""
