"""The fixtures of tests that open, install, convert and export models."""

from zoo_fixtures import _saved, cloob, model_folder, tiny_model, tokenizer, zoo_home  # noqa: F401
