"""Find the images of an index that are nearest to texts and images.

query.py makes one vector of everything that is asked for; nearest.py compares it with all rows.
"""
