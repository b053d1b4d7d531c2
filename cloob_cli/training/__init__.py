"""Training: the loop and what it is made of. It yields events (events.py) and draws nothing."""
