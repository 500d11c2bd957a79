"""Trains VAEs of the five families that the paper names, on black and white digits.

`recipes` lists what is trained, `fit` trains it and gives its test bound, `as_vae` turns it into a
model to condition, and `publishing` writes that as a model of the zoo.
"""
