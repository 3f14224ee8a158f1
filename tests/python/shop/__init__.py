"""A Django app with tasks, for the tests."""
