"""Where training pairs come from, one module a form of storage."""
