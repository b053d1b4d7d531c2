"""The zoo: entries, installed models, downloads, conversion and export."""
