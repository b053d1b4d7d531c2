"""The model folder: reading and writing it, its fingerprint and its model card.

Start reading at `folder.save_model` and `folder.open_model`.
"""
