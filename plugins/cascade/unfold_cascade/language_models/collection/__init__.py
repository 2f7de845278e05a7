"""Collecting a log of calls from endpoints."""
