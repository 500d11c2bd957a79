"""Answers: what a method found, its verdict, and all that can be asked of it."""
