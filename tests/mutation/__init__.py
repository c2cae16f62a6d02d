"""Mutation testing: small bugs, planted one at a time, that the tests must notice."""
