"""Classes learnt on the device from a few clips: banks of prototypes or neighbours on frozen embeddings."""
