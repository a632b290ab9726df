"""Passes and how they are run: pipelines, their text form, instruments and the report."""
