"""The few names that open_clip imports from torchvision, which is not a dependency of this project."""

__version__ = "0.0"
