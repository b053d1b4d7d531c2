"""Reports for a browser: one self-contained HTML file each.

page.py turns a template into a page that cannot load or run anything but its own; gallery.py writes pages of images
(classify, search, dedupe), evaluation.py the page of `cloob eval`. The templates are in `cloob_cli/_templates/`.
"""
