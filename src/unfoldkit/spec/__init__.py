"""From YAML text to a validated, frozen spec, with the position of every mistake."""
