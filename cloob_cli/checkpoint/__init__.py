"""The model folder: reading and writing it, its fingerprint and its model card."""
