"""Sources of training pairs: one module for each form of storage."""
