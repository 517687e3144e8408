"""Print the embedding of each window of a WAV file: python embed_wav.py SOUND.wav [MODEL.onnx]"""

import json
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "frontend.json").read_text())
RATE, SAMPLES = ABOUT["sample_rate_hz"], ABOUT["window_samples"]


def embed(path: str, model: str = ABOUT["ship"]) -> Iterator[np.ndarray]:
    """Yield the embedding (dim,) of each window; the last window is followed by silence."""
    frontend, student = (InferenceSession(str(HERE / name)) for name in ("frontend.onnx", model))
    with wave.open(path) as file:
        width, channels = file.getsampwidth(), file.getnchannels()
        if file.getframerate() != RATE or width not in (2, 4):
            sys.exit(f"expected 16 or 32 bit PCM at {RATE} Hz; try: ffmpeg -i {path} -ar {RATE} NEW.wav")
        while data := file.readframes(SAMPLES):
            sound = np.frombuffer(data, f"<i{width}").reshape(-1, channels).mean(axis=1) / 2 ** (
                8 * width - 1
            )
            window = np.pad(sound, (0, SAMPLES - len(sound))).astype(np.float32)[None]
            log_mel = frontend.run(["log_mel"], {"waveform": window})[0]
            yield student.run(["embedding"], {"log_mel": log_mel})[0][0]


if __name__ == "__main__":
    for embedding in embed(*sys.argv[1:3]):
        print(*embedding)
