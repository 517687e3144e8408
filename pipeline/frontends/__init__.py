"""Waveform to log-mel: plain torch, batched, exportable."""
