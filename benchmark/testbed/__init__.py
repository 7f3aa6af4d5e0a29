"""The embedded model: concepts, drawings, captions and their training."""
