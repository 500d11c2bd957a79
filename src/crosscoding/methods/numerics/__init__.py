"""Numerical building blocks of the methods, each testable by itself."""
