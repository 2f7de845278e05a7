"""Answering a stream with deadlines by one family: which net, how many at a time."""
