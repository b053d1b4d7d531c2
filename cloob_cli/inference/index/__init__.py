"""Embeddings of images that follow their folders: what is new or changed is embedded, the rest is kept.

Start with update.py: `plan_update` compares the images with the rows that are known, `embed_new` embeds what no known
row fits, and `write_index` writes all rows in the order of the images. known_rows.py holds known rows, from an index
(reading.py) and from runs that were killed (journal.py); file_stamp.py tells by which file a row was made.
"""
