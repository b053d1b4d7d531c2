"""Put results where they are needed: images in a folder for each label, keywords in sidecar files; and take it back.

Start with filing.py, which commands/classify.py calls for each batch of answers. folder_names.py makes labels into
names of folders, placing.py copies, links or moves one file, xmp.py and sidecars.py write keywords. Before any of it is
done it stands in the undo file (undo_file.py), which undo.py reads backwards.
"""
