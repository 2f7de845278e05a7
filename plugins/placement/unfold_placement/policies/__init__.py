"""The policies, one file each; :mod:`unfold_placement.policies.line` is what those that order the queue share."""
