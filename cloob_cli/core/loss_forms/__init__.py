"""The fast forms of the losses in `loss.py`."""
