"""The smallest plugin: a template for authors and a fake for the tests of the core."""
