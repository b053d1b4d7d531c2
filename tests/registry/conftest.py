"""The fixtures of tests that open, install, convert and export models, and a Hub on this machine."""

from zoo_fixtures import _saved, cloob, hub, model_folder, tiny_model, tokenizer, zoo_home  # noqa: F401
