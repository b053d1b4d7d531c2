"""Images, texts and pairs of them: what is read, and which of it comes when."""
