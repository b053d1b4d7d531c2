"""Training, as a stream of events. It draws nothing.

`loop.train_recipe(recipe, folder)` is the entry point: it builds a run (`build.build_run`) and trains it
(`loop.train`), and yields the events of `events.py` on the way.
"""
