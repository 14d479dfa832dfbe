"""Runs told to people after the fact: several beside each other, or one as a page."""
