"""Embed images on a cluster: what is to be read, in parts; one batch's work; Ray Data, which runs it; the result.

Start reading at `find_parts`, then `read_parts` and `ImageEmbedder`, which need no Ray, and `embed_parts`, which does.
"""
