"""Sources of training pairs, one module a kind of storage."""
