"""The zoo: cards, installed models, downloads, conversion and export."""
