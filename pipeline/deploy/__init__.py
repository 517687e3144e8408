"""Deployment: ONNX, int8 calibrated from the store, the frontend as its own file, and the parity gate."""
