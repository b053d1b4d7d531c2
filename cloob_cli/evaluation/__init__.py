"""Measure models on data sets: `cloob eval`, and `cloob analyze` (analysis.py).

Start with evaluate.py: a model and a data set in, a `Record` (results.py) out. One module a task: zero_shot.py,
retrieval.py and linear_probe.py. embeddings.py embeds a data set once, and embedding_cache.py keeps that by
content.
"""
