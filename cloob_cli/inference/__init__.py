"""Classify and embed ordinary folders of images.

Start with classify.py and embed.py, which the commands call: paths in, batches of rows out. reading.py finds, reads
and decodes images for both; encoding.py runs the model. scoring.py scores images for labels, and answers.py makes rows
(rows.py) of the scores. outputs.py writes result files, and output_files.py guards those that exist already. index/
keeps embeddings up to date with their folders, and search/ finds the nearest of them.
"""
