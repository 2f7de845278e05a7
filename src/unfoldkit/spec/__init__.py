"""From YAML text to a validated, frozen spec, with every mistake told at its place."""
