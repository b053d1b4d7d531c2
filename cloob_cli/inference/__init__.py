"""Classify and embed ordinary folders of images.

Start with classify.py and embed.py, which the commands call: paths in, batches of rows out. image_batches.py finds,
reads and decodes images for both; encoding.py runs the model. scoring.py scores images for labels, and answers.py makes
rows (result_rows.py) of the scores. row_writers.py writes result files, and output_paths.py guards those that exist
already. index/ keeps embeddings up to date with their folders, and search/ finds the nearest of them.
"""
