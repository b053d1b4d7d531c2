"""Find images that are there more than once: the same bytes, or nearly the same picture.

Start with groups.py, which makes groups of an index's rows, best copy first. components.py narrows millions of pairs
down to sets of rows with large cosines, in memory that does not grow with the pairs; perceptual_hash.py compares the
images themselves.
"""
