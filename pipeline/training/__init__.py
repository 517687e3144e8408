"""Stage 2: train a student on a store. No audio, no teacher; one run is one folder."""
