"""Trains VAEs of the five families that the paper names, on black and white digits.

`FAMILIES` lists their recipes, `fit` trains one of them, and `bound` gives its test bound.
"""
