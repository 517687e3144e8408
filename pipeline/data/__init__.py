"""Stage 2's view of a store: sampling order, batches, augmentation, statistics. No audio, no teacher."""
