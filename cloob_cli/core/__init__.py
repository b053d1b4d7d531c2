"""Tensors in, tensors out: the losses, the models and what scores them."""
