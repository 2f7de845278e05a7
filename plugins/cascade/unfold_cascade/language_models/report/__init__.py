"""Reports of cascades of language models."""
