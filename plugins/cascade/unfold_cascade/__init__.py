"""Cascades of models: which ones must really be asked, for this case, at this moment (UnfoldML)."""
